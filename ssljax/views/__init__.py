"""Views: what the device makes of a batch at random. Pure functions (key, arrays) -> arrays, no state, no host work.

Row i of a result depends on (key, row i of the input, i) only, never on the size of the batch (mixing apart).
Image operations take keys [B], one per example (`example_keys(key, B)`); pipelines and masks take one key.
"""

from ssljax.base.registry import Registry

REGISTRY = Registry(
    "views",
    {
        "single": "ssljax.views.augment:Single",
        "two_views": "ssljax.views.augment:TwoViews",
        "multi_crop": "ssljax.views.augment:MultiCrop",
    },
)
