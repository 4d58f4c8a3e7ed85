"""int8 and fp16: conversion of files, and fake quantisation in PyTorch."""
