"""Rotation: bases in which an axis is cut where it carries least (docs/rotation.md)."""
