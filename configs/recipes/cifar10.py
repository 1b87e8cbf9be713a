"""ResNet-18 on CIFAR-10 with seven methods, as libraries compare them (lightly 2022; solo-learn, da Costa et al. 2022).

`method` is simclr (the default), byol, vicreg, dino, swav, barlow_twins or moco; 200 epochs. The first layer of the
ResNet keeps 32 x 32 pixels.

    ssljax inspect --config configs/recipes/cifar10.py
    ssljax train --config configs/recipes/cifar10.py --workdir runs/simclr --config.data.source=images:DIR/{split}

`python benchmarks/cifar10.py` trains all of them in as many sittings as it takes, and prints their table.

Hardware: for lightly one RTX A6000; planned for one H200.
Time: 158 to 197 minutes each for lightly; not run here: no such hardware.
Result: published accuracy of k-NN (k 200) on the test split after 200 epochs: BYOL 86.9 %, SimCLR 84.7 %, Barlow
Twins 84.2 %, DINO 84.0 %, MoCo 83.8 %, SwAV 81.2 % (lightly, batch of 128); accuracy of a linear classifier after 1,000
epochs: BYOL 92.6 %, Barlow Twins 92.1 %, VICReg 92.1 %, MoCo 91.9 %, SimCLR 90.7 %, DINO 89.5 %, SwAV 89.2 %
(solo-learn).
Source: github.com/lightly-ai/lightly, documentation and script of its CIFAR-10 benchmark;
github.com/vturrisi/solo-learn, page of its results.
Data: CIFAR-10, 50,000 pictures for training, 10,000 for the test, a folder for each class.
Differs from the paper: batches of 512 with the rate of lightly for them. The losses of BYOL are added, there they are
halved, so its rate is a quarter and its weight decay four times theirs, which gives the same updates. MoCo has the keys
of the batch and a predictor (v3), there it has a queue, whose keys would tell batches apart by their batch norm. The
head of DINO has no batch norm. VICReg has the optimiser and widths of solo-learn. Batch norm has no running averages.
"""

import ml_collections

from ssljax.config import arguments

METHODS = ("simclr", "byol", "vicreg", "dino", "swav", "barlow_twins", "moco")
TOPOLOGIES = {f"method={name}": "h200:1" for name in METHODS}

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
COLOURS = dict(flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.2, blur=0.0)
TWO_VIEWS = dict(name="two_views", crop_scale=(0.08, 1.0), augment=COLOURS, second=None)


def crops(scale):
    """Two crops of the whole size, and no small ones."""
    return dict(
        name="multi_crop", global_crops=2, local_crops=0, global_scale=scale, augment=COLOURS, second=None, local=None
    )


OBJECTIVES = dict(
    simclr=dict(temperature=0.5, projector=dict(hidden=512, output=128, norm=None), augment=TWO_VIEWS),
    byol=dict(
        projector=dict(hidden=1024, output=256),
        predictor=dict(hidden=1024),
        teacher=dict(momentum=0.99, schedule="constant"),
        augment=TWO_VIEWS,
    ),
    vicreg=dict(projector=dict(hidden=2048, output=2048, layers=3), augment=TWO_VIEWS),
    dino=dict(
        head=dict(hidden=2048, bottleneck=256, prototypes=2048),
        teacher_temperature=0.04,
        teacher_warmup=0.0,
        momentum=0.99,
        augment=crops((0.4, 1.0)),
    ),
    swav=dict(prototypes=512, projector=dict(hidden=512, output=128), augment=crops((0.14, 1.0))),
    barlow_twins=dict(projector=dict(hidden=2048, output=2048), augment=TWO_VIEWS),
    moco=dict(
        temperature=0.2,
        projector=dict(hidden=512, output=128),
        predictor=dict(hidden=512),
        teacher=dict(momentum=0.99),
        augment=TWO_VIEWS,
    ),
)

SGD = dict(name="sgd", learning_rate=0.06, lr_per=128, weight_decay=5e-4, momentum=0.9)
OPTIMIZERS = dict(
    byol=SGD | dict(learning_rate=0.015, weight_decay=2e-3),
    vicreg=dict(name="lars", learning_rate=0.3, lr_per=256, weight_decay=1e-4, momentum=0.9, trust=0.02),
    swav=dict(name="adamw", learning_rate=1e-3, lr_per=128, weight_decay=1e-6),
)


def get_config(arg=""):
    method = arguments(arg, method=METHODS)["method"]
    probe = dict(test_split="test")
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="resnet", preset="18", stem="small", norm="batch", dtype="bfloat16"),
            objective=dict(name=method, mean=MEAN, std=STD, **OBJECTIVES[method]),
            data=dict(source="declared:rows=50000,image=32x32x3,label=10", num_classes=10),
            optimizer=OPTIMIZERS.get(method, SGD),
            schedule=dict(name="cosine", warmup="10 epochs" if method == "vicreg" else 0),
            mesh=dict(data=-1),
            evals=dict(knn=dict(k=200, temperature=0.1, **probe), linear=probe),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=1_000),
            batch_size=512,
            steps="200 epochs",
        )
    )
