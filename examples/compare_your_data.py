"""Does selection pay on your data? Compare it with full training, and with full training cut short to the same cost.

cd examples && es-service compare --task compare_your_data:build_task --methods es --seeds 2 --out comparison
"""

from torch import nn

from es_service.training.tasks import fashion
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Classification, TensorSet


def build_task(data=None):
    """Describe your data and your model; `data` is what --data names. Here: 1,500 images, as plain tensors."""
    del data
    source = fashion.build()
    parts = []
    for part, num in ((source.train_set, 1500), (source.held_out, 500)):
        images, labels = part.__getitems__(range(num))
        parts.append(TensorSet(images.flatten(1), labels))
    return Classification(
        name="my-images",
        train_set=parts[0],
        held_out=parts[1],
        model=lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)),
        defaults=TaskDefaults(epochs=4, batch_size=50, learning_rate=0.05),
    )
