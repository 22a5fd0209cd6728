"""Data for workers that are started afresh, which have to import torchvision before they unpickle it."""

from __future__ import annotations

import pickle
from typing import Any

from torch.utils.data import Dataset

from tests._support import torchvision_stub


class InWorker(Dataset[Any]):
    """A dataset that crosses to another process by its own pickle."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getstate__(self) -> bytes:
        return pickle.dumps(self.dataset)

    def __setstate__(self, state: bytes) -> None:
        torchvision_stub.importable()
        self.dataset = pickle.loads(state)
