"""The objects of one kind in memory: nothing is lost, nothing stays that is gone, and what is equal stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.kube.kinds import BY_KIND
from autoscaler.kube.listing import Listed
from autoscaler.kube.shelf import Shelf, uid_of, version_of


def pod(uid: str, version: int, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": uid, "uid": uid, "resourceVersion": str(version), "labels": labels}}


def versions(shelf: Shelf) -> dict[str, int]:
    return {uid_of(item): int(version_of(item)) for item in shelf.items}


def listed(version: int, *items: dict[str, Any]) -> Listed:
    return Listed(items, str(version))


def pods() -> Shelf:
    return Shelf(BY_KIND["Pod"], 2)


def test_what_a_list_does_not_have_is_gone_and_what_is_unchanged_is_the_same_object():
    shelf = Shelf(BY_KIND["Pod"])
    shelf.replace(0, listed(5, pod("a", 1), pod("b", 2)))
    (first, _) = shelf.items

    shelf.replace(0, listed(9, pod("a", 1), pod("c", 8)))

    assert versions(shelf) == {"a": 1, "c": 8}
    assert shelf.items[0] is first


def test_without_a_change_the_items_are_the_same_tuple():
    shelf = Shelf(BY_KIND["Pod"])
    shelf.replace(0, listed(5, pod("a", 1)))
    before = shelf.items

    shelf.replace(0, listed(9, pod("a", 1)))
    shelf.passed(0, "12")

    assert shelf.items is before


def test_a_pod_with_both_labels_is_there_once_and_stays_until_both_are_gone():
    shelf = pods()
    shelf.replace(0, listed(5, pod("a", 1)))
    shelf.replace(1, listed(5, pod("a", 1)))

    shelf.drop(0, pod("a", 6))
    assert versions(shelf) == {"a": 1}
    shelf.put(1, pod("a", 6))
    assert versions(shelf) == {"a": 6}

    shelf.drop(1, pod("a", 7))
    assert len(shelf) == 0


def test_a_watch_that_lags_behind_the_other_does_not_take_an_object_back():
    shelf = pods()
    shelf.put(0, pod("a", 1))
    shelf.put(0, pod("a", 4))

    shelf.put(1, pod("a", 1))

    assert versions(shelf) == {"a": 4}


def test_a_list_that_is_older_than_what_the_other_watch_told_does_not_take_an_object_back():
    shelf = pods()
    shelf.put(0, pod("a", 9))

    shelf.replace(1, listed(5, pod("a", 1)))

    assert versions(shelf) == {"a": 9}


def test_after_a_restore_from_a_backup_the_lists_are_believed_though_their_versions_are_lower():
    shelf = pods()
    shelf.replace(0, listed(95, pod("a", 90)))
    shelf.replace(1, listed(95, pod("a", 90)))

    shelf.replace(0, listed(20, pod("a", 11)))
    shelf.replace(1, listed(21, pod("a", 11)))

    assert versions(shelf) == {"a": 11}


def test_a_namesake_with_another_uid_is_another_object():
    shelf = Shelf(BY_KIND["Deployment"])
    shelf.replace(0, listed(5, pod("a", 1)))
    shelf.drop(0, pod("a", 6))
    shelf.put(0, {"metadata": {"name": "a", "uid": "another", "resourceVersion": "7"}})

    assert versions(shelf) == {"another": 7}
    assert "a" not in shelf


def test_a_new_version_that_says_nothing_new_is_no_change_where_versions_are_not_used():
    shelf = Shelf(BY_KIND["Node"])
    shelf.put(0, pod("node", 1))
    before = shelf.items

    shelf.put(0, pod("node", 2))
    assert shelf.items is before

    shelf.put(0, pod("node", 3, zone="b"))
    assert shelf.items is not before


def test_a_pods_new_version_is_taken_though_it_says_nothing_new_since_writes_are_judged_by_it():
    shelf = Shelf(BY_KIND["Pod"])
    shelf.put(0, pod("a", 1))
    shelf.put(0, pod("a", 2))

    assert versions(shelf) == {"a": 2}


UIDS = st.sampled_from("abc")
STEPS = st.lists(st.tuples(st.sampled_from(["put", "move", "drop"]), UIDS, st.tuples(st.booleans(), st.booleans())))
LAGS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["next", "list"])), max_size=60)


class _Server:
    """Pods with two labels, their history, and what each of two collections was told of it so far."""

    def __init__(self, steps: Sequence[tuple[str, str, tuple[bool, bool]]]) -> None:
        self.states: list[dict[str, tuple[int, tuple[bool, bool]]]] = [{}]
        for version, (what, uid, labels) in enumerate(steps, 1):
            state = dict(self.states[-1])
            if what == "drop":
                state.pop(uid, None)
            else:
                state[uid] = (version, labels)
            self.states.append(state)

    def of(self, at: int, collection: int) -> dict[str, int]:
        return {uid: version for uid, (version, labels) in self.states[at].items() if labels[collection]}

    def tell(self, shelf: Shelf, collection: int, at: int) -> None:
        """Send the events that lead to a version."""
        before, after = self.of(at - 1, collection), self.of(at, collection)
        for uid in before.keys() - after.keys():
            shelf.drop(collection, pod(uid, at))
        for uid, version in after.items():
            if before.get(uid) != version:
                shelf.put(collection, pod(uid, version))
        shelf.passed(collection, str(at))


@given(STEPS, LAGS)
def test_whatever_the_order_in_which_two_collections_are_told_both_end_with_what_the_server_has(steps, lags):
    server, shelf, at = _Server(steps), pods(), [0, 0]
    last = len(server.states) - 1
    for collection, what in [*lags, *((collection, "next") for collection in (0, 1) for _ in range(last))]:
        if what == "list":
            at[collection] = last
            found = server.of(last, collection)
            shelf.replace(collection, listed(last, *(pod(uid, version) for uid, version in found.items())))
        elif at[collection] < last:
            at[collection] += 1
            server.tell(shelf, collection, at[collection])

    assert at == [last, last]
    assert versions(shelf) == server.of(last, 0) | server.of(last, 1)
