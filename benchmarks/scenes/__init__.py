"""The two tasks of rendered scenes: their generators, and the training of their models.

A scene depends only on its seed, so the same scenes can be made again anywhere. `difficulty` runs from 0 (one large
character on black) to 1. Test scenes always have difficulty 1. Lower difficulties are for training, which starts with
easy scenes. Without them, an untrained transformer does not learn these tasks.
"""
