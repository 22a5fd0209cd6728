"""Networks small enough for training tests, by the names that --model takes: tiny_nets:classifier."""

import os
import signal

from torch import nn


class Net(nn.Sequential):
    """Kills its process in the n-th training forward pass if TESTS_DIE_AT is n."""

    passes = 0

    def forward(self, x):
        if self.training:
            self.passes += 1
            if self.passes == int(os.environ.get("TESTS_DIE_AT", "0")):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x.to(self[0].weight.dtype))


def classifier(num_classes, drop_path_rate=0.0, drop_rate=0.0):
    """With batch norm and dropout, whose statistics and random numbers a checkpoint must keep."""
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return Net(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(drop_rate), nn.Linear(32, num_classes)
    )


def exact(num_classes, **rates):
    """In float64 and without batch norm, so that only the order of sums can differ."""
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return Net(*layers, nn.Linear(32, num_classes)).double()


def segmenter(num_classes):
    """Half the resolution and back."""
    layers = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, num_classes, 1)]
    return Net(*layers, nn.Upsample(scale_factor=2, mode="bilinear"))
