"""Registry aliases: the champion of a model moves only from where it was found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import platformdirs
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from freqfilter.atomic_io import writable_folder
from freqfilter.errors import UserError
from freqfilter.tracking.client import retry, wrap_store_errors

CHAMPION, PREVIOUS = "champion", "previous"  # aliases
CANDIDATE = "candidate"  # the alias of the newest version
DESCRIPTION = """\
Filters that pick one sinusoid out of a noisy mixture. The alias `champion` is on the version that has won, `candidate`
on the newest. A version's description has its figures and what was decided about it."""
DECISION = "decision"  # the folder of the evidence, among the artifacts of a decision's run


class ChampionChangedError(UserError):
    """Somebody else has moved the alias in the meantime."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version.

    Attributes:
        model_name: The registered model.
        version: Its number.
        tags: Its tags.
        registered_ms: When, milliseconds since 1970.
        run_id: The run that trained it.
        source: Where its files are.
    """

    model_name: str
    version: int
    tags: dict[str, str]
    registered_ms: int
    run_id: str
    source: str

    @classmethod
    def from_mlflow(cls, found: ModelVersion) -> RegisteredVersion:
        """The version as MLflow has it."""
        tags, run_id = dict(found.tags), str(found.run_id or "")
        return cls(found.name, int(found.version), tags, found.creation_timestamp, run_id, str(found.source))

    @property
    def uri(self) -> str:
        """Where it is loaded from."""
        return f"models:/{self.model_name}/{self.version}"


def candidate_version(model_name: str, version: int | None) -> RegisteredVersion:
    """A version by its number, or the newest.

    Raises:
        UserError: If there is none.
    """
    found = version_at_alias(model_name, CANDIDATE) if version is None else _version(model_name, version)
    if found is None:
        raise UserError(f"model_name={model_name}: no version is called {CANDIDATE}; give one with version=N")
    return found


def version_at_alias(model_name: str, alias: str) -> RegisteredVersion | None:
    """The version that an alias is on; None where it is on none.

    Raises:
        UserError: If there is no such model.
    """
    with wrap_store_errors(f"model_name={model_name}"):
        version = retry(lambda: MlflowClient().get_registered_model(model_name)).aliases.get(alias)
    return None if version is None else _version(model_name, int(version))


def _version(model_name: str, version: int) -> RegisteredVersion:
    with wrap_store_errors(f"model_name={model_name}, version={version}"):
        return RegisteredVersion.from_mlflow(retry(lambda: MlflowClient().get_model_version(model_name, str(version))))


def all_versions(model_name: str) -> list[RegisteredVersion]:
    """Every version of a model, the oldest first.

    Raises:
        UserError: If there is no such model.
    """
    client, found, token = MlflowClient(), [], None
    with wrap_store_errors(f"model_name={model_name}"):
        client.get_registered_model(model_name)
        while True:
            page = client.search_model_versions(f"name = '{model_name}'", page_token=token)
            found += [RegisteredVersion.from_mlflow(version) for version in page]
            if not (token := page.token):
                return sorted(found, key=lambda version: version.version)


def tag_version(version: RegisteredVersion, tags: Mapping[str, str], *, description: str = "") -> None:
    """Note evidence on a version; the description gets another paragraph.

    Raises:
        UserError: If the registry refuses it.
    """
    client, key = MlflowClient(), (version.model_name, str(version.version))
    with wrap_store_errors(version.uri):
        for name, value in tags.items():
            retry(partial(client.set_model_version_tag, *key, name, value))
        if description:
            before = client.get_model_version(*key).description or ""
            client.update_model_version(*key, f"{description}\n\n{before}")


def move_champion(
    to: RegisteredVersion, *, found: RegisteredVersion | None, evidence: Mapping[str, str], description: str
) -> None:
    """Make a version the champion, with its evidence, and the one before it the previous one.

    A lock keeps two of this machine apart. MLflow has no way to set an alias only where it has not changed: of two
    machines that both find the same champion within the same milliseconds, the later one wins; it is read again
    before and after.

    Args:
        to: The new champion.
        found: The champion that the decision was made against; None: there was none.
        evidence: Tags of the new champion, which it has before it is one.
        description: A paragraph for it.

    Raises:
        ChampionChangedError: If it is another one by now.
    """
    name, client = to.model_name, MlflowClient()
    with wrap_store_errors(to.uri), FileLock(_lock_file(name)):
        before = version_at_alias(name, CHAMPION)
        if (before and before.version) != (found and found.version):
            raise ChampionChangedError(
                f"{name}: version {before.version if before else 'none'} is the champion by now, "
                f"no longer {found.version if found else 'none'}: decide again"
            )
        tag_version(to, evidence, description=description)
        if before and before.version != to.version:
            retry(lambda: client.set_registered_model_alias(name, PREVIOUS, str(before.version)))
        retry(lambda: client.set_registered_model_alias(name, CHAMPION, str(to.version)))
        after = version_at_alias(name, CHAMPION)
        if after is None or after.version != to.version:
            raise ChampionChangedError(f"{name}: somebody else has moved the champion at the same time: decide again")


def _lock_file(model_name: str) -> Path:
    key = hashlib.sha256(f"{mlflow.get_tracking_uri()} {model_name}".encode()).hexdigest()[:16]
    return writable_folder(Path(platformdirs.user_cache_dir("freqfilter")) / "locks") / f"{key}.lock"


def make_registered_model(client: MlflowClient, name: str) -> None:
    """Make a registered model, unless it is there."""
    try:
        client.create_registered_model(name, description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def set_candidate(client: MlflowClient, name: str, version: int) -> None:
    """Let the alias be on the newest version, whoever else registers at the same time."""
    current = int(client.get_registered_model(name).aliases.get(CANDIDATE, 0))
    if current < version:
        client.set_registered_model_alias(name, CANDIDATE, str(version))


def registered_models() -> list[str]:
    """The names of all registered models.

    Raises:
        UserError: If the registry does not say.
    """
    with wrap_store_errors("model registry"):
        return [str(model.name) for model in MlflowClient().search_registered_models(max_results=1000)]
