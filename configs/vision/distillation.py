"""Knowledge distillation (Hinton et al. 2015): a small classifier learns from the probabilities of a trained one.

The teacher is a run of `classification.py` on the same data. The student, on CIFAR-10, is a vision transformer of 0.03M
parameters; on MNIST it is one of 0.04M, and the teacher a ResNet.

    ssljax train --config configs/vision/classification.py --workdir runs/big
    ssljax train --config configs/vision/distillation.py --workdir runs/small --config.objective.teacher_from=runs/big

Time: 2 minutes on one CPU core for MNIST.
Result: accuracy on held-out digits: 0.610 (the student alone 0.545); docs/results.md, section 1.

`--config.objective.weight=0` trains the student alone, the control. Without `teacher_from`, the teacher is random.
"""

import _images

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_images.DATA)["data"]
    augment = dict(name="single", crop_scale=(0.5, 1.0), augment=dict(flip=0.0 if data == "mnist" else 0.5))
    objective = dict(name="distillation", teacher_model=_images.encoder(data), augment=augment)
    loss = dict(max_examples=5_000, test_split="train[-10%:]" if data == "folder" else "test")
    evals = _images.probes(data) | dict(loss=loss)
    config = _images.one_view(data, objective, steps=250 if data == "mnist" else 550, evals=evals)
    config.model = dict(_images.vit(_images.PATCH_SIZE[data]), width=32, depth=2)
    return config
