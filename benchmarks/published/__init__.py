"""Every method on DeiT-S and DeiT-B at the sizes that its paper published, to an ONNX file with parity.

    python -m benchmarks.published                                   random weights, 64 pictures of noise: sizes, parity
    python -m benchmarks.published --imagenet /data/imagenet         the hub's weights, real pictures: top-1 too

The ImageNet folder has train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. Calibration, selection and training take pictures of
train/, the table's top-1 is that of val/. Add --rows to choose rows, --trials, --epochs for training (the papers train for
30 to 300 epochs; the default is none, but for the methods that are a training), and --images to use fewer pictures.
Finished rows are not run again.
"""
