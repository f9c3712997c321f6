"""The kubelet's messages, as much of them as is read: fields by number and type, in one table.

From the public definitions of Kubernetes: `podresources/v1` and `pods/v1alpha1` of k8s.io/kubelet, `core/v1` and
`meta/v1` for pods. On the wire only numbers and types count; what is not named here is skipped by whoever decodes.
Importing this costs 2 MiB, so it is imported where a socket is.
"""

from __future__ import annotations

import re
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "kubelet"
_STRINGS: Final = "map"
_FIELD: Final = re.compile(r"(\*?)(\w+) (\d+)")
_Proto = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Proto.TYPE_STRING,
    "bytes": _Proto.TYPE_BYTES,
    "bool": _Proto.TYPE_BOOL,
    "int32": _Proto.TYPE_INT32,
    "int64": _Proto.TYPE_INT64,
}

# `*` is repeated, `map` one of strings by strings.
_TABLE: Final[dict[str, dict[str, str]]] = {
    # podresources/v1: PodResourcesLister.List
    "ListPodResourcesRequest": {},
    "ListPodResourcesResponse": {"pod_resources": "*PodResources 1"},
    "PodResources": {"name": "string 1", "namespace": "string 2", "containers": "*ContainerResources 3"},
    "ContainerResources": {
        "name": "string 1",
        "devices": "*ContainerDevices 2",
        "dynamic_resources": "*DynamicResource 5",
    },
    "ContainerDevices": {"resource_name": "string 1", "device_ids": "*string 2"},
    "DynamicResource": {"claim_resources": "*ClaimResource 4"},
    "ClaimResource": {"driver_name": "string 2", "pool_name": "string 3", "device_name": "string 4"},
    # pods/v1alpha1: Pods.WatchPods
    "WatchPodsRequest": {},
    "WatchPodsEvent": {"type": "int32 1", "pod": "bytes 2"},
    # core/v1 and meta/v1: a pod, marshalled into those bytes
    "Pod": {"metadata": "ObjectMeta 1", "spec": "PodSpec 2", "status": "PodStatus 3"},
    "ObjectMeta": {
        "name": "string 1",
        "namespace": "string 3",
        "uid": "string 5",
        "labels": "map 11",
        "annotations": "map 12",
        "ownerReferences": "*OwnerReference 13",
    },
    "OwnerReference": {"kind": "string 1", "name": "string 3", "controller": "bool 6"},
    "PodSpec": {"containers": "*Container 2", "nodeName": "string 10"},
    "Container": {"name": "string 1"},
    "PodStatus": {"containerStatuses": "*ContainerStatus 8"},
    "ContainerStatus": {
        "name": "string 1",
        "state": "ContainerState 2",
        "lastState": "ContainerState 3",
        "containerID": "string 8",
    },
    "ContainerState": {"terminated": "ContainerStateTerminated 3"},
    "ContainerStateTerminated": {"exitCode": "int32 1", "finishedAt": "Time 6"},
    "Time": {"seconds": "int64 1"},
}


def _described() -> descriptor_pb2.FileDescriptorProto:
    # proto3, also for what is written as proto2: text that is none is refused at once then, not when it is looked at.
    file = descriptor_pb2.FileDescriptorProto(name="kubelet.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        for field, text in fields.items():
            _add(message, field, text)
    return file


def _add(message: descriptor_pb2.DescriptorProto, field: str, text: str) -> None:
    parts = _FIELD.fullmatch(text)
    assert parts is not None, text
    many, kind, number = parts[1] or parts[2] == _STRINGS, parts[2], int(parts[3])
    added = message.field.add(name=field, number=number, label=_Proto.LABEL_REPEATED if many else _Proto.LABEL_OPTIONAL)
    if kind in _SCALARS:
        added.type = _SCALARS[kind]
        return
    added.type = _Proto.TYPE_MESSAGE
    added.type_name = f".{_PACKAGE}.{kind}"
    if kind == _STRINGS:
        entry = message.nested_type.add(name=f"{field.capitalize()}Entry")
        entry.options.map_entry = True
        for place, half in enumerate(("key", "value"), start=1):
            entry.field.add(name=half, number=place, label=_Proto.LABEL_OPTIONAL, type=_Proto.TYPE_STRING)
        added.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_described())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _TABLE}


_CLASSES: Final = _classes()
ListPodResourcesRequest: Final = _CLASSES["ListPodResourcesRequest"]
ListPodResourcesResponse: Final = _CLASSES["ListPodResourcesResponse"]
WatchPodsRequest: Final = _CLASSES["WatchPodsRequest"]
WatchPodsEvent: Final = _CLASSES["WatchPodsEvent"]
Pod: Final = _CLASSES["Pod"]
