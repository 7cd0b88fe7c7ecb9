"""The loss curve of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from anew.train.metrics import Record


def plot_losses(records: Sequence[Record], title: str, path: Path) -> None:
    """Draw training and validation loss over the steps into a PNG file that is whole or not there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [(r.iteration, r.train_loss) for r in records if r.train_loss is not None]
    validation = [(r.iteration, r.val_loss) for r in records if r.val_loss is not None]
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.6, linewidth=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
