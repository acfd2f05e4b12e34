"""Registry aliases; the champion moves only if it is still the expected version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from freqfilter.errors import UserError
from freqfilter.tracking.client import equality_filter, retry, store_lock, wrap_store_errors

CHAMPION, PREVIOUS = "champion", "previous"  # aliases
CANDIDATE = "candidate"  # the alias of the newest version
DESCRIPTION = """\
Filters that extract one sinusoid from a noisy mixture. The alias `champion` marks the promoted version, `candidate`
the newest. A version's description has its scores and the decisions about it."""
MAX_DESCRIPTION = 5000  # characters of a version's description in MLflow's tables; PostgreSQL refuses longer ones
DECISION_PARAGRAPH = re.compile(r"\(run \[`\w+`\]\(#/runs/\w+\)\)$")  # the end of a decision's paragraph in it
DECISION = "decision"  # artifact folder of the evidence, in a decision's run


class ChampionChangedError(UserError):
    """Another process has moved the champion since it was read."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version.

    Attributes:
        model_name: Name of the registered model.
        version: Version number.
        tags: Tags of the version.
        registered_ms: Time of registration, milliseconds since 1970.
        run_id: Id of the run that trained it.
        source: URI of its files.
    """

    model_name: str
    version: int
    tags: dict[str, str]
    registered_ms: int
    run_id: str
    source: str

    @classmethod
    def from_mlflow(cls, entity: ModelVersion) -> RegisteredVersion:
        """Convert MLflow's entity."""
        tags, run_id = dict(entity.tags), str(entity.run_id or "")
        return cls(entity.name, int(entity.version), tags, entity.creation_timestamp, run_id, str(entity.source))

    @property
    def uri(self) -> str:
        """URI that loads this version."""
        return f"models:/{self.model_name}/{self.version}"


def candidate_version(model_name: str, version: int | None) -> RegisteredVersion:
    """Return the version of a number or, without one, the newest that exists, whatever alias it has.

    Raises:
        UserError: If there is no such version.
    """
    if version is not None:
        return _version(model_name, version)
    with wrap_store_errors(f"model_name={model_name}"):
        newest = retry(lambda: _newest_version(MlflowClient(), model_name))
    if newest is None:
        raise UserError(f"model_name={model_name}: it has no version; train one with `freqfilter train`")
    return RegisteredVersion.from_mlflow(newest)


def _newest_version(client: MlflowClient, model_name: str) -> ModelVersion | None:
    client.get_registered_model(model_name)  # raises if there is none
    having = equality_filter("name", model_name)
    if having:  # one is enough
        return next(iter(client.search_model_versions(having, max_results=1, order_by=["version_number DESC"])), None)
    return max(_versions(model_name), key=lambda version: int(version.version), default=None)


def _versions(model_name: str) -> list[ModelVersion]:
    found = mlflow.search_model_versions(filter_string=equality_filter("name", model_name) or None)
    return [version for version in found if version.name == model_name]


def version_at_alias(model_name: str, alias: str) -> RegisteredVersion | None:
    """Return the version of an alias; None if the alias is not set or its version is deleted.

    Raises:
        UserError: If there is no such model.
    """
    with wrap_store_errors(f"model_name={model_name}"):
        number = retry(lambda: MlflowClient().get_registered_model(model_name)).aliases.get(alias)
        if number is None:
            return None
        try:
            return RegisteredVersion.from_mlflow(retry(lambda: MlflowClient().get_model_version(model_name, number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def require_alias(model_name: str, alias: str) -> RegisteredVersion:
    """Return the version of an alias.

    Raises:
        UserError: If there is no such model, the alias is not set, or its version is deleted.
    """
    if (found := version_at_alias(model_name, alias)) is not None:
        return found
    remedy = "give the number of a version instead"
    if alias == CHAMPION:
        remedy += ", or choose a champion with `freqfilter promote` or `freqfilter rollback --version N`"
    raise UserError(f"model_name={model_name}: no version has the alias {alias}, or it was deleted; {remedy}")


def _version(model_name: str, version: int) -> RegisteredVersion:
    with wrap_store_errors(f"model_name={model_name}, version={version}"):
        return RegisteredVersion.from_mlflow(retry(lambda: MlflowClient().get_model_version(model_name, str(version))))


def all_versions(model_name: str) -> list[RegisteredVersion]:
    """Return all versions of a model, the oldest first.

    Raises:
        UserError: If there is no such model.
    """
    with wrap_store_errors(f"model_name={model_name}"):
        MlflowClient().get_registered_model(model_name)
        versions = map(RegisteredVersion.from_mlflow, _versions(model_name))
        return sorted(versions, key=lambda version: version.version)


def created_ms(model_name: str) -> int:
    """Time of a registered model's creation, milliseconds since 1970.

    Raises:
        UserError: If there is no such model.
    """
    with wrap_store_errors(f"model_name={model_name}"):
        return int(MlflowClient().get_registered_model(model_name).creation_timestamp)


def tag_version(version: RegisteredVersion, tags: Mapping[str, str], *, description: str = "") -> None:
    """Set tags of a version, and prepend a paragraph to its description, which loses the oldest ones if it is too long.

    Raises:
        UserError: If the registry refuses the change.
    """
    client, key = MlflowClient(), (version.model_name, str(version.version))
    with wrap_store_errors(version.uri):
        for name, value in tags.items():
            retry(partial(client.set_model_version_tag, *key, name, value))
        if description:
            before = client.get_model_version(*key).description or ""
            client.update_model_version(*key, _prepend(description, before))


def _prepend(paragraph: str, description: str) -> str:
    """Prepend the paragraph of a decision; the oldest decisions are left out where there is no space for them."""
    paragraphs = [" ".join(paragraph.split()), *description.split("\n\n")]
    decisions = [n for n, text in enumerate(paragraphs) if n and DECISION_PARAGRAPH.search(text)]
    while len("\n\n".join(paragraphs)) > MAX_DESCRIPTION and decisions:
        del paragraphs[decisions.pop()]
    return "\n\n".join(paragraphs)[:MAX_DESCRIPTION]


def move_champion(
    to: RegisteredVersion, *, found: RegisteredVersion | None, evidence: Mapping[str, str], description: str
) -> None:
    """Make a version the champion, with its evidence, and the former champion the previous one.

    A lock serializes processes of this machine. MLflow has no conditional update of an alias: if two machines read the
    same champion within the same milliseconds, the later write wins; the alias is read before and after the write.

    Args:
        to: The new champion.
        found: The champion that the decision was based on; None: there was none.
        evidence: Tags of the new champion, set before the alias is moved.
        description: Paragraph for its description.

    Raises:
        ChampionChangedError: If the champion is no longer ``found``.
    """
    name, client = to.model_name, MlflowClient()
    with wrap_store_errors(to.uri), champion_lock():
        before = version_at_alias(name, CHAMPION)
        if (before and before.version) != (found and found.version):
            raise ChampionChangedError(
                f"{name}: the champion changed from version {found.version if found else 'none'} "
                f"to {before.version if before else 'none'} during the decision; run the command again"
            )
        tag_version(to, evidence, description=description)
        if before and before.version != to.version:
            retry(lambda: client.set_registered_model_alias(name, PREVIOUS, str(before.version)))
        retry(lambda: client.set_registered_model_alias(name, CHAMPION, str(to.version)))
        after = version_at_alias(name, CHAMPION)
        if after is None or after.version != to.version:
            raise ChampionChangedError(f"{name}: another process moved the champion; run the command again")


@contextmanager
def champion_lock() -> Iterator[None]:
    """Context manager in which no other process of this machine moves a champion of this registry.

    Raises:
        UserError: If the lock cannot be taken.
    """
    lock = store_lock(mlflow.get_registry_uri())
    try:
        lock.acquire()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{lock.lock_file}: cannot be locked: {reason}; make this file writable for you") from None
    try:
        yield
    finally:
        lock.release()


def check_champion_lock() -> None:
    """Take the lock of ``champion_lock`` and release it, before the work whose result needs it.

    Raises:
        UserError: If it cannot be taken.
    """
    with champion_lock():
        pass


def make_registered_model(client: MlflowClient, name: str) -> None:
    """Create a registered model if it does not exist.

    Raises:
        UserError: If the registry has a prompt of this name.
        MlflowException: If the registry refuses it.
    """
    try:
        client.create_registered_model(name, description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # MLflow keeps prompts among the registered models, but refuses versions of them.
        try:
            client.get_registered_model(name)
        except MlflowException:
            raise UserError(f"model_name={name}: a prompt of the registry has this name; choose another") from None


def set_candidate(client: MlflowClient, name: str) -> None:
    """Set the alias ``candidate`` to the newest version; safe with concurrent registrations."""
    if newest := _newest_version(client, name):
        client.set_registered_model_alias(name, CANDIDATE, str(newest.version))


def registered_models() -> list[str]:
    """Return the names of all registered models.

    Raises:
        UserError: If the registry cannot be read.
    """
    with wrap_store_errors("model registry"):
        return [str(model.name) for model in mlflow.search_registered_models()]
