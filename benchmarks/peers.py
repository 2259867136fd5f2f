"""The same training steps by Lightning, timm and Accelerate, as their users run them."""

from __future__ import annotations

import itertools
import logging
import warnings
from typing import Any

import bare
import recipe
import torch
from loops import Stamps, Task
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms


def lightning(task: Task, workers: int) -> Stamps:
    """Lightning's Trainer with logger, checkpoints and progress bar off."""
    import lightning as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    stamps = Stamps()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.WEIGHT_DECAY)

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            stamps.mark()

    loader: Any = DataLoader(
        task.dataset(bare.transform()), recipe.BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=task.steps, callbacks=[Clock()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    return stamps


def timm(task: Task, workers: int, prefetcher: bool) -> Stamps:
    """The loop of timm's train.py with its loader, optimizer factory and scheduler; the prefetcher normalises whole batches.

    timm's own training transforms resize and jitter colours, so those of the other rows take their place: the ends stay timm's.
    """
    from timm.data import create_dataset, create_loader
    from timm.data.transforms import MaybePILToTensor, MaybeToTensor
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter

    dataset: Any = create_dataset("", root=task.jpegs, split="train") if task.jpegs else task.dataset(None)
    loader = create_loader(
        dataset, (3, 32, 32), recipe.BATCH, is_training=True, mean=recipe.MEAN, std=recipe.STD,
        num_workers=workers, device=torch.device("cpu"), use_prefetcher=prefetcher, persistent_workers=workers > 0,
    )  # fmt: skip
    ends = [MaybePILToTensor()] if prefetcher else [MaybeToTensor(), transforms.Normalize(torch.tensor(recipe.MEAN), torch.tensor(recipe.STD))]
    dataset.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *ends])
    model = task.model().train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.WEIGHT_DECAY)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=30, updates_per_epoch=len(loader), step_on_epochs=False)
    criterion, losses, stamps = nn.CrossEntropyLoss(), AverageMeter(), Stamps()
    for images, labels in itertools.islice(bare.forever(loader), task.steps):
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), images.size(0))
        stamps.mark()
        scheduler.step_update(num_updates=len(stamps), metric=losses.avg)
    return stamps


def accelerate(task: Task, workers: int) -> Stamps:
    """A bare loop whose model, optimizer and loader Accelerate has prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = task.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.WEIGHT_DECAY)
    model, optimizer, loader = accelerator.prepare(model, optimizer, bare.make_loader(task.dataset(bare.transform()), workers))
    stamps = Stamps()
    for images, labels in itertools.islice(bare.forever(loader), task.steps):
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
        stamps.mark()
    return stamps
