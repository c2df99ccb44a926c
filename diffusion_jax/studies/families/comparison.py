"""Families of generative models compared after the same training images: compare_families."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import parsing, provenance, reading
from diffusion_jax.studies import other_models, store
from diffusion_jax.studies.families import measures, workers
from diffusion_jax.studies.families import report as family_report
from diffusion_jax.studies.families import tasks as family_tasks
from diffusion_jax.studies.families.measures import Row
from diffusion_jax.studies.families.tasks import FamilyResult, FamilyTask
from diffusion_jax.studies.few_step import methods


# ---- the command
def compare_families(
    config: ConfigDict,
    *,
    workdir: str,
    families: str,
    seeds: str,
    others: str,
    jobs: int = 1,
    figures: str = "",
) -> None:
    """Compare families of generative models, and print the report.

    Args:
      config: the config of configs/families.py.
      workdir: the folder of all runs and of the report.
      families: names separated by ';'; '' for all of the config.
      seeds: the seeds of training, separated by commas; '' for those of the config.
      others: workdirs of trained models that are measured too, separated by commas.
      jobs: number of families at a time, each in a process on a core of its own; 1 runs them in
        this process, on all cores.
      figures: the folder and the beginning of the names of copies of the figures, such as
        docs/images/families_digits; '' for none.
    """
    paths = parsing.paths("others", others)
    print(compare(config, workdir, families, seeds, paths, jobs, figures))
    print(f"{workdir}/families.html holds all of this, with pictures; to sample a family:")
    print(f"python -m experiments.sample --workdir={shlex.quote(str(workdir))}/FAMILY_SEED")


def compare(
    config: ConfigDict,
    workdir: str,
    families: str = "",
    seeds: str = "",
    others: Sequence[str] = (),
    jobs: int = 1,
    figures: str = "",
) -> str:
    """Train, measure and write everything that is missing.

    Args:
      config: the config of configs/families.py.
      workdir: the folder of all runs and of the report.
      families: names with semicolons; '' for all of the config.
      seeds: with commas; '' for those of the config.
      others: workdirs of trained models that are measured too.
      jobs: number of families at a time; 1 runs them in this process.
      figures: the beginning of the paths of copies of the figures; '' for none.

    Returns:
      The text of families.md.

    Raises:
      UserError: before anything is trained, for names that do not exist and models that cannot be
        compared.
      CommandExit: if a signal stopped a training; running the command again resumes it.
    """
    root = Path(workdir).absolute()
    configs, tasks = family_tasks.chosen(config, families, seeds)
    workers.check_jobs(jobs)
    dataset = family_tasks.dataset_of(configs)
    family_tasks.check_folder(root, configs, config, dataset)
    models = {
        name: (other, workdirs.load_for_comparison(other, "--others", dataset.image_shape))
        for name, other in other_models.named(others, config.family).items()
    }
    comparison = FamilyComparison(root, config, configs, dataset, _judge(dataset, config))
    missing = [task for task in tasks if comparison.found(task) is None]
    if jobs > 1 and missing:
        comparison.judge()  # fits the classifier once, for all processes
        workers.run_all(
            root, missing, configs, config, jobs, lambda: comparison.report(tasks, {}, "")
        )
    else:
        for task in missing:
            own = configs[task.name]
            result = family_tasks.run(root, task, own, config, dataset, comparison.judge)
            said = family_report.said_scores(result.row, config.features)
            print(f"{task.name}, seed {task.seed}: {said}", file=sys.stderr)
    return comparison.report(tasks, models, figures)


def _judge(dataset: data.Dataset, config: ConfigDict) -> Any:
    return functools.cache(lambda: measures.judge_of(dataset, config.num, config.features))


class FamilyComparison(NamedTuple):
    """What a comparison knows about its data and its folder.

    Attributes:
      root: the folder.
      settings: the config of the comparison.
      configs: the config of each family.
      dataset: the images.
      judge: makes the judge, once.
    """

    root: Path
    settings: ConfigDict
    configs: dict[str, ConfigDict]
    dataset: data.Dataset
    judge: Any

    def found(self, task: FamilyTask) -> FamilyResult | None:
        """What is stored of a task; None where something is missing.

        Args:
          task: the family and the seed.
        """
        return family_tasks.found(self.root, task, self.configs[task.name], self.settings)

    def report(
        self, tasks: Sequence[FamilyTask], models: Mapping[str, tuple[Path, Trained]], figures: str
    ) -> str:
        """Write the report of the tasks that are finished.

        Args:
          tasks: the tasks, of which those without a result are left out.
          models: trained models that are measured too, with their workdirs, by their names.
          figures: the beginning of the paths of copies of the figures; '' for none.

        Returns:
          The text of families.md.
        """
        results = [found for task in tasks if (found := self.found(task)) is not None]
        titles = {name: self.settings.about[name] for name in self.configs}
        for name, (other, trained) in models.items():
            results.append(self._other(name, other, trained))
            titles[name] = _described(trained)
        record = {
            "data": self.settings.data.name,
            "num": self.settings.num,
            "images": self.settings.images,
            "end_logsnr": self.settings.end_logsnr,
            "features": self.settings.features,
            "finished": f"{len(results)} of {len(tasks) + len(models)}",
            "provenance": provenance.provenance(self.settings.to_dict(), tasks[0].seed),
        }
        return family_report.write(
            results, self.dataset, self._real(), titles, self.root / "families", record, figures
        )

    def _real(self) -> Row:
        """The scores of real test images, measured once."""
        identity = {"num": self.settings.num, "features": self.settings.features}
        rule = reading.record(
            {}, {"intervals": reading.table(reading.number(0))}, others=reading.number(finite=False)
        )
        path = store.cell_path(self.root / "real", identity)
        if known := store.load(path, lambda path: store.read_cell(path, "row", rule, {})):
            return known[0]
        row = measures.of_real(self.dataset, self.judge(), self.settings.num)
        store.save_cell(path, "row", row, {})
        return row

    def _other(self, name: str, workdir: Path, trained: Trained) -> FamilyResult:
        """The scores and the first images of a model that is there, by its own sampler."""
        row, pictures = measures.of_images(
            trained, self.dataset, self.judge(), self.settings.num, name
        )
        experiment = trained.experiment
        if took := methods.seconds(workdir):  # unknown of a published or imported model
            row |= {"minutes": took / 60}
        row |= {"steps": trained.step, "images": trained.step * experiment.data.batch_size}
        return FamilyResult(FamilyTask(name, self.settings.seeds[0]), [row], row, pictures)


def _described(trained: Trained) -> str:
    specs, settings = trained.experiment.specs, trained.experiment.sampling
    return f"{specs.objective}, {settings.name} in {settings.nfe} evaluations"
