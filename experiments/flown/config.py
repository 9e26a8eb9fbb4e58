"""What the experiment can be told, and its presets."""

import dataclasses

__all__ = ["PRESETS", "Config", "check"]


TABLES = ("held_out_tasks", "out_of_distribution", "fine_tuning", "unconditional", "codec", "sinusoid")


MAKERS = ("mean", "soup", "retrieval", "ridge", "hypernetwork", "flow map", "maml", "reptile")


@dataclasses.dataclass(frozen=True)
class Config:
    """Generate networks for a task from a few of its examples, and audit that they are new."""

    preset: str = "laptop"
    seed: int = 0
    dataset: str = "digits"
    tables: tuple[str, ...] = TABLES
    """Those that are made; others have to wait for another run."""
    makers: tuple[str, ...] = MAKERS
    """Who makes networks for tasks, beside random initialisation and the flow."""
    network: str = "mlp"
    """Of the zoo: "mlp" of one hidden layer, or "cnn" of two convolutions."""
    num_ways: int = 5
    """Classes of a task, of the data set's ten, in an order of their own."""
    width: int = 16
    """Of the networks' hidden layer, or channels of the second convolution."""
    num_train: int = 4096
    """Networks of training tasks to learn from."""
    num_unseen: int = 256
    """More runs of training tasks, which the codec is judged by."""
    num_held: int = 152
    """Networks of validation tasks, and as many of held-out tasks."""
    run_steps: int = 300
    run_batch: int = 32
    run_rate: float = 1e-2
    """Of Adam, on a cosine to zero."""
    num_features: int = 20
    """Principal components of the images, as which a context sees its examples."""
    shots: tuple[int, ...] = (1, 5, 20)
    """Examples of a class in a support set."""
    num_codes: int = 32
    code_noise: float = 0.1
    """On codes while the encoder is fitted, so that networks are found around a code as well as at it."""
    encoder_steps: int = 3000
    flow_steps: int = 5000
    copies: int = 8
    """Of every training network, with its labels in another order and another support set."""
    num_fits: int = 3
    """Seeds of encoder, flow and baselines."""
    num_samples: int = 8
    """For every context, among which the support set chooses the best."""
    temperature: float = 0.5
    """Of the source, where one network is wanted for a context; chosen on validation tasks."""
    num_tuned: int = 12
    """Held-out tasks that the flow itself is tuned to."""
    flow_tuning_steps: int = 20
    flow_tuning_rates: tuple[float, ...] = (1e-4, 1e-3)
    """Of the flow's own tuning; each way's own is the best on validation tasks."""
    copying_steps: int = 10_000
    """Of the recipe that copies."""
    num_generated: int = 400
    """Without a context, for the audit."""
    tuning_steps: tuple[int, ...] = (0, 1, 5, 25)
    tuning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Of Adam, downstream; each method's own is the best on validation tasks."""
    most_steps: int = 200
    """Downstream, in search of 95 % of the trained accuracy."""
    meta_steps: int = 2000
    """Of MAML and Reptile."""
    inner_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Of theirs, by gradient descent; the best on validation tasks is taken."""
    most_scratch_steps: int = 1000
    """Of training from scratch for as much compute as generating takes, at most."""
    family_train: int = 2048
    """Networks to learn from, each of a law of its own, of sinusoids and of moons."""
    family_held: int = 128
    """More of them to choose by, and as many to judge by."""
    family_steps: int = 800
    family_shots: int = 10
    """Examples in all."""
    family_codes: int = 16
    family_fit_steps: int = 3000
    """Of encoder, flow, hypernetwork, MAML and Reptile."""
    family_inner_steps: int = 5
    family_inner_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    family_tuning_steps: tuple[int, ...] = (0, 1, 5, 10)


PRESETS = {
    "smoke": Config(
        preset="smoke", tables=("held_out_tasks",), makers=("retrieval",), num_train=128, num_unseen=32,
        num_held=16, run_steps=60, shots=(5,), num_codes=8, encoder_steps=40, flow_steps=40, meta_steps=20, copies=2,
        num_fits=2, num_samples=2, num_generated=32, tuning_steps=(0, 5), tuning_rates=(1e-2,), most_steps=10,
        inner_rates=(0.1,), most_scratch_steps=20, num_tuned=2, flow_tuning_steps=8,
        flow_tuning_rates=(1e-3,), copying_steps=40, family_train=64, family_held=8,
        family_steps=40, family_codes=4, family_fit_steps=20, family_inner_steps=1, family_inner_rates=(0.01,),
        family_tuning_steps=(0, 5),
    ),
    "laptop": Config(),
    "paper": Config(
        preset="paper", dataset="mnist", network="cnn", num_train=16_384, num_unseen=1024, run_steps=1000, run_batch=64,
        num_features=64, num_codes=64, encoder_steps=20_000, flow_steps=30_000, meta_steps=10_000, copying_steps=30_000,
        num_tuned=38, family_train=8192, family_fit_steps=20_000,
    ),
}  # fmt: skip


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run."""
    for field in COUNTS:
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{field}: expected at least 1, got {value}")
    for field, known in (("tables", TABLES), ("makers", MAKERS)):
        if unknown := set(getattr(config, field)) - set(known):
            raise ValueError(f"{field}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if not config.tables:
        raise ValueError("tables: expected at least one, got none")
    if config.network not in ("mlp", "cnn"):
        raise ValueError(f"network: expected mlp or cnn, got {config.network!r}")
    for field in ("tuning_steps", "family_tuning_steps"):
        if not (steps := getattr(config, field)) or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise ValueError(f"{field}: expected numbers rising from 0, got {steps}")
    if config.tuning_steps[-1] > config.most_steps:
        raise ValueError(f"tuning_steps: expected at most most_steps, {config.most_steps}, got {config.tuning_steps}")
    if not 2 <= config.num_ways <= 9:
        raise ValueError(f"num_ways: expected 2..9 of the ten classes, got {config.num_ways}")
    if config.num_fits < 2:
        raise ValueError(f"num_fits: expected at least 2, for a spread, got {config.num_fits}")
    if not config.shots or min(config.shots) < 1 or list(config.shots) != sorted(set(config.shots)):
        raise ValueError(f"shots: expected rising numbers of at least 1, got {config.shots}")
    for field in ("tuning_rates", "flow_tuning_rates", "inner_rates", "family_inner_rates"):
        if not (rates := getattr(config, field)) or not all(rate > 0 for rate in rates):
            raise ValueError(f"{field}: expected positive learning rates, got {rates}")
    for field in ("run_rate", "temperature"):
        if not getattr(config, field) > 0:
            raise ValueError(f"{field}: expected more than 0, got {getattr(config, field)}")
    if config.code_noise < 0:
        raise ValueError(f"code_noise: expected at least 0, got {config.code_noise}")
    if 4 * config.num_codes >= config.num_train:
        raise ValueError(
            f"num_codes: expected less than a quarter of num_train, {config.num_train}, got {config.num_codes}"
        )


COUNTS = (
    "width", "num_train", "num_unseen", "num_held", "run_steps", "run_batch", "num_features", "num_codes", "encoder_steps",
    "flow_steps", "copies", "num_samples", "num_generated", "most_steps", "meta_steps", "most_scratch_steps", "num_tuned",
    "copying_steps", "family_train", "family_held", "family_steps", "family_shots", "family_codes", "family_fit_steps",
    "family_inner_steps", "flow_tuning_steps",
)  # fmt: skip
