"""The two clusters in which the same story is played: a folder of manifests, and a real API server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from autoscaler.model.crd import render_crds
from tests.e2e.apiserver import ApiServer, api_server, missing_own_reason
from tests.integration import manifests
from tests.integration.manifests import NAME, NAMESPACE, Manifest


class World(Protocol):
    """A cluster, as its users look at it."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What the controller is told to find it."""
        ...

    def add(self, manifest: Manifest, status: Manifest | None = None) -> str:
        """Add an object and return its UID."""
        ...

    def annotate_template(self, key: str, text: str | None) -> None:
        """Put an annotation on the Deployment's pod template, or (None) take it away."""
        ...

    def read(self, kind: str, name: str) -> Manifest:
        """Return an object, empty when it is not there."""
        ...

    def events(self) -> list[Manifest]:
        """Return all events."""
        ...


class FolderWorld:
    """Manifests in files, one an object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--cluster-dir", str(self.folder))

    def add(self, manifest: Manifest, status: Manifest | None = None) -> str:
        uid = str(uuid.uuid4())
        whole = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}
        if status is not None:
            whole["status"] = status
        self._replace(whole)
        return uid

    def annotate_template(self, key: str, text: str | None) -> None:
        # Only users write to this object, so that no writer's change is lost.
        owner = self.read("Deployment", NAME)
        annotations = owner["spec"]["template"]["metadata"]["annotations"]
        annotations.pop(key, None)
        if text is not None:
            annotations[key] = text
        self._replace(owner)

    def read(self, kind: str, name: str) -> Manifest:
        found = (one for one in self._objects() if (one["kind"], one["metadata"]["name"]) == (kind, name))
        return next(found, {})

    def events(self) -> list[Manifest]:
        return [one for one in self._objects() if one["kind"] == "Event"]

    def _replace(self, manifest: Manifest) -> None:
        """Write an object's file in one step: its reader finds all of it, before or after."""
        name = f"{manifest['kind'].lower()}.yaml"
        half = self.folder / f".{name}.half"
        half.write_text(yaml.safe_dump(manifest, sort_keys=False))
        half.replace(self.folder / name)

    def _objects(self) -> Iterator[Manifest]:
        for path in sorted(self.folder.glob("[!.]*.yaml")):
            yield from (one for one in yaml.load_all(path.read_text(), yaml.CSafeLoader) if one)


class ApiServerWorld:
    """Objects behind a Kubernetes API server, made and read with kubectl; nothing else runs in that cluster."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        for text in render_crds().values():
            self._run("apply", "-f", "-", stdin=text)
        self._run("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
        self._run("create", "namespace", NAMESPACE)

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--kubeconfig", str(self.server.kubeconfig))

    def add(self, manifest: Manifest, status: Manifest | None = None) -> str:
        made = json.loads(self._run("create", "-f", "-", "-o", "json", stdin=json.dumps(manifest)))
        if status is not None:
            place = ("--namespace", NAMESPACE, manifest["kind"], manifest["metadata"]["name"])
            patch = json.dumps({"status": status})
            self._run("patch", *place, "--subresource=status", "--type=merge", f"--patch={patch}")
        return str(made["metadata"]["uid"])

    def annotate_template(self, key: str, text: str | None) -> None:
        patch = json.dumps({"spec": {"template": {"metadata": {"annotations": {key: text}}}}})
        self._run("patch", "--namespace", NAMESPACE, "Deployment", NAME, "--type=merge", f"--patch={patch}")

    def read(self, kind: str, name: str) -> Manifest:
        text = self._run("get", "--namespace", NAMESPACE, kind, name, "-o", "json", "--ignore-not-found")
        found: Manifest = json.loads(text) if text else {}
        return found

    def events(self) -> list[Manifest]:
        text = self._run("get", "--namespace", NAMESPACE, "events.events.k8s.io", "-o", "json")
        found: list[Any] = json.loads(text)["items"]
        return found

    def _run(self, *arguments: str, stdin: str = "") -> str:
        done = self.server.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def folder_world(folder: Path) -> Iterator[World]:
    yield FolderWorld(folder / "cluster")


@contextmanager
def api_server_world(folder: Path) -> Iterator[World]:
    if reason := missing_own_reason():
        pytest.skip(reason)
    place = folder / "apiserver"
    place.mkdir()
    with api_server(place) as server:
        yield ApiServerWorld(server)


def populate(world: World) -> str:
    """Add what a user applies and what the cluster makes of it; return the UID of the only pod."""
    world.add(manifests.node())
    world.add(manifests.PROFILE)
    owner = world.add(manifests.deployment())
    return world.add(manifests.pod(world.add(manifests.replica_set(owner))), manifests.POD_STATUS)
