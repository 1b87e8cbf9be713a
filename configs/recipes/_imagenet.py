"""ImageNet-1k as the recipes of images read it: its shapes, until `data.source` names the pictures.

`--config.data.source=images:DIR/{split}` reads a folder of pictures for each split, with a folder for each class.
Pictures are squeezed to 224 x 224, and crops are cut in their own proportions.
"""

import ml_collections

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATA = dict(
    source="declared:rows=1281167,image=224x224x3,label=1000",
    image_size=224,
    image_fit="squeeze",
    images="encoded",
    num_classes=1000,
)

# Of the folder of pictures, once it is there.
PROBES = dict(knn=dict(test_split="val"), linear=dict(test_split="val", solver="sgd"))

RESNET_50 = dict(name="resnet", preset="50", norm="batch", dtype="bfloat16")


def config(model, objective, optimizer, schedule, batch_size, epochs, mesh):
    """A run on ImageNet without labels, in pixels of mean 0 and variance 1."""
    return ml_collections.ConfigDict(
        dict(
            model=model,
            objective=dict(objective, mean=MEAN, std=STD),
            data=DATA,
            optimizer=optimizer,
            schedule=schedule,
            mesh=mesh,
            evals=PROBES,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=batch_size,
            steps=f"{epochs} epochs",
        )
    )
