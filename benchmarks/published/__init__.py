"""Run of every method at its published size, on DeiT-S, DeiT-B and PVTv2-B2, up to an ONNX file with parity.

    python -m benchmarks.published                                   random weights, 64 pictures of noise: sizes, parity
    python -m benchmarks.published --imagenet /data/imagenet         pretrained weights, real pictures: also top-1

Parity means that the outputs of ONNX Runtime agree with those of PyTorch. The ImageNet folder has train/<wnid>/*.JPEG
and val/<wnid>/*.JPEG. Calibration, selection and training use pictures of train/. The table shows the top-1 accuracy on
val/.

--rows chooses rows. --trials sets the number of trials. --epochs sets the length of the training. The papers train for
30 to 300 epochs. The default is 0, but methods that consist of a training always train for at least one epoch. --images
limits the number of pictures. The script does not run finished rows again.
"""
