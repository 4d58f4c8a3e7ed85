"""A real network on real pictures: DINOv2 ViT-S/14, cut by rotation and by choosing (see __main__.py)."""
