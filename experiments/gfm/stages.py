"""The stages of the experiment: record, forecast the simple ways, learn, forecast, report."""

import pathlib
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from experiments.gfm.checks import check
from experiments.gfm.evaluate import Judge, cohorts, forecast_cohort, loss_on, stopwatch
from experiments.gfm.exam import Exam, Ledger, observe_all
from experiments.gfm.fields import learn_flow_maps, learn_velocities
from experiments.gfm.figures import FIGURES
from experiments.gfm.histories import learn_histories
from experiments.gfm.lessons import learn_from
from experiments.gfm.noise import noise_floor
from experiments.gfm.synthetic import forecast_regressions
from experiments.gfm.tables import HELD_OUT, arrays_of, markdown, tabulate
from experiments.gfm.zoo import make_tasks, record_zoo, run_specs
from experiments.run_folder import RunFolder
from gfm_jax.base import Forecast
from gfm_jax.forecasting import baselines

__all__ = ["forecast_runs"]

SIMPLE = {
    "persistence": baselines.persistence(),
    "lawa": baselines.lawa(),
    "lawa_quarter": baselines.lawa(1 / 4),
    "lawa_half_log": baselines.lawa_half_log(),
    "linear": baselines.linear(),
    "log_time": baselines.log_time(),
    "log_time_steps": baselines.log_time("step"),
    "sqrt_time": baselines.sqrt_time(),
    "exponential": baselines.exponential(),
    "rank1": baselines.rank1(),
    "dmd": baselines.dmd(),
}


def forecast_runs(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage, each with its progress on the screen, and leaves the run folder."""
    check(config)
    tasks, specs = make_tasks(config), run_specs(config)
    folder = RunFolder(out, config)
    held_out = [spec for spec in specs if spec.split != "train"]

    with tqdm(total=len(held_out), desc="record the runs that are held out", unit="run") as bar:
        groups, dropped = cohorts(record_zoo(config, tasks, held_out, bar.update))
    judges = [Judge(cohort) for cohort in groups]
    ledger = Ledger({}, {}, {})
    print(f"{len(held_out)} runs held out; {dropped} of them diverged or were never trained, and are left out below")
    folder.add("zoo", "held out", runs=len(held_out), dropped=dropped)
    _forecast_simply(config, groups, judges, ledger)
    for split in HELD_OUT:
        print(markdown(ledger, groups, split, config.prefixes), flush=True)

    # Every field sees the loss on images that the runs were trained on.
    loss_of = {name: loss_on(task, "train", slice(config.train_images)) for name, task in tasks.items()}
    asked = observe_all(config, groups, loss_of)
    training = [spec for spec in specs if spec.split == "train"]
    lessons = learn_from(config, tasks, training, loss_of)
    folder.add("zoo", "train", runs=len(training), dropped=lessons.dropped)
    noise_floor(config, tasks, folder)
    exam = Exam(config, lessons, groups, judges, asked, folder.path / "checkpoints")
    with ThreadPoolExecutor(2) as beside:  # what the flow maps do not need
        parts = [beside.submit(learn_histories, exam), beside.submit(learn_velocities, exam)]
        others = [beside.submit(forecast_regressions, folder, config)]
        others.append(beside.submit(_time_simple_ways, config, groups, ledger))
        flow_maps, flow_map = learn_flow_maps(exam, ledger)
        parts = [part.result() for part in parts] + [flow_maps]
        others = [other.result() for other in others]
    for part in parts:
        for all_rows, rows in zip(ledger, part, strict=True):
            all_rows.update(rows)

    tabulate(folder, ledger, groups, config.prefixes)
    arrays = arrays_of(ledger, exam, config.prefixes, flow_map)
    folder.finish("Forecasting where training runs end", command, arrays, FIGURES)


def _forecast_simply(config, groups, judges, ledger):
    # Forecasters that decompose matrices compile one by one: XLA's CPU runtime of jax 0.10 stalls where several batched
    # LAPACK calls of one program wait for the same few threads.
    alone = ("exponential", "rank1", "dmd")
    programs = [{row: f for row, f in SIMPLE.items() if row not in alone}, *({row: SIMPLE[row]} for row in alone)]
    work = [(prefix, i) for prefix in config.prefixes for i in range(len(groups))]
    for prefix, i in tqdm(work, desc="forecast the simple ways", leave=False):
        for program in programs:
            nothing = dict.fromkeys(program, ())
            for row, forecast in forecast_cohort(program, nothing, groups[i], prefix, simple=True).items():
                ledger.scores.setdefault((row, prefix), [[]])[0].append(judges[i].score(forecast, prefix))
                ledger.forecasts.setdefault((row, prefix), []).append(forecast)
    for prefix in config.prefixes:
        truth = [Forecast(group.runs.weights[:, -1]) for group in groups]
        ledger.scores["oracle_final", prefix] = [[j.score(f, prefix) for j, f in zip(judges, truth, strict=True)]]


def _time_simple_ways(config, groups, ledger):
    for row, forecaster in SIMPLE.items():
        ledger.stopwatches[row] = stopwatch(forecaster, (), groups[0], config.prefixes[0])
