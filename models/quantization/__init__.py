"""int8 and fp16: files, and their emulation in PyTorch."""
