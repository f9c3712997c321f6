"""What the chart renders holds together, read from the golden files, so that it is checked without helm, too."""

from __future__ import annotations

from tests.chart.rendered import (
    ALL,
    CLUSTER_WIDE,
    PLAIN,
    TEXTS,
    container,
    environment,
    every,
    matched,
    of_kind,
    pods,
    ports,
    rules,
)
from tests.chart.rendering import NAMESPACE

KINDS = {
    "v1": {"Namespace", "ServiceAccount", "Secret", "Service", "ConfigMap", "PersistentVolumeClaim"},
    "apps/v1": {"Deployment", "DaemonSet"},
    "policy/v1": {"PodDisruptionBudget"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
    "admissionregistration.k8s.io/v1": {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"},
    "cert-manager.io/v1": {"Issuer", "Certificate"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule"},
}


@every
def test_every_kind_is_known_and_no_object_stands_there_twice(name: str) -> None:
    for document in ALL[name]:
        assert document["kind"] in KINDS[document["apiVersion"]]
    identities = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in ALL[name]]
    assert len(identities) == len(set(identities))


@every
def test_what_has_a_namespace_is_in_that_of_the_release(name: str) -> None:
    home = "tf-autoscaler" if name == PLAIN else NAMESPACE
    for document in ALL[name]:
        namespace = document["metadata"].get("namespace")
        if document["kind"] in CLUSTER_WIDE:
            assert namespace is None
        elif "scaler-keys" not in document["metadata"]["name"]:
            assert namespace == home, document["metadata"]["name"]


@every
def test_every_object_says_what_it_belongs_to(name: str) -> None:
    for document in ALL[name]:
        if document["kind"] != "Namespace":
            labels = document["metadata"]["labels"]
            assert labels["app.kubernetes.io/part-of"] == "tensor-fusion-autoscaler"
            assert labels["app.kubernetes.io/component"] in {"controller", "agent", "webhook"}


@every
def test_every_selector_matches_the_pods_of_one_component(name: str) -> None:
    for document in of_kind(name, "Deployment", "DaemonSet"):
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
    selectors = [item["spec"]["selector"]["matchLabels"] for item in of_kind(name, "PodDisruptionBudget", "PodMonitor")]
    selectors += [item["spec"]["selector"] for item in of_kind(name, "Service")]
    selectors += [item["spec"]["podSelector"]["matchLabels"] for item in of_kind(name, "NetworkPolicy")]
    assert selectors or name == "no-webhook"
    for labels in selectors:
        assert len(matched(name, labels)) == 1, labels


@every
def test_the_controller_looks_for_agents_where_they_are(name: str) -> None:
    told = environment(pods(name)["controller"])
    wanted = dict(pair.split("=") for pair in told["TF_AUTOSCALER_AGENT_SELECTOR"].split(","))
    if "agent" not in pods(name):
        return
    assert matched(name, wanted) == ["agent"]
    (daemons,) = of_kind(name, "DaemonSet")
    assert told["TF_AUTOSCALER_AGENT_NAMESPACE"] == daemons["metadata"]["namespace"]
    port = int(told["TF_AUTOSCALER_AGENT_URL_TEMPLATE"].rpartition(":")[2])
    assert port in {one["containerPort"] for one in container(pods(name)["agent"])["ports"]}


@every
def test_every_port_that_is_named_exists(name: str) -> None:
    for service in of_kind(name, "Service"):
        (component,) = matched(name, service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(pods(name)[component])
    for monitor in of_kind(name, "PodMonitor"):
        (component,) = matched(name, monitor["spec"]["selector"]["matchLabels"])
        assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} <= ports(pods(name)[component]).keys()
    for policy in of_kind(name, "NetworkPolicy"):
        (component,) = matched(name, policy["spec"]["podSelector"]["matchLabels"])
        open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert open_ports == set(ports(pods(name)[component]).values())
    for pod in pods(name).values():
        for probe in ("livenessProbe", "readinessProbe"):
            assert container(pod)[probe]["httpGet"]["port"] in ports(pod)
        scraped = (pod["metadata"]["annotations"]).get("prometheus.io/port")
        assert scraped is None or int(scraped) == ports(pod)["metrics"]


@every
def test_pods_are_found_by_a_monitor_or_by_annotations_never_by_both(name: str) -> None:
    monitored = {
        component
        for monitor in of_kind(name, "PodMonitor")
        for component in matched(name, monitor["spec"]["selector"]["matchLabels"])
    }
    for component, pod in pods(name).items():
        annotated = pod["metadata"]["annotations"].get("prometheus.io/scrape") == "true"
        assert annotated != (component in monitored)


@every
def test_webhooks_lead_to_the_service_and_only_profiles_wait_for_it(name: str) -> None:
    services = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in of_kind(name, "Service")}
    hooks = [
        hook
        for document in of_kind(name, "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
        for hook in document["webhooks"]
    ]
    assert bool(hooks) == ("webhook" in pods(name))
    for hook in hooks:
        target = hook["clientConfig"]["service"]
        service = services[target["namespace"], target["name"]]
        assert target["port"] in {port["port"] for port in service["spec"]["ports"]}
        assert hook["failurePolicy"] == ("Fail" if hook["name"] == "profiles.tensor-fusion.ai" else "Ignore")
        # Nobody's pods but those that take part, and never those that serve the webhook.
        for rule in hook["rules"]:
            if "pods" in rule["resources"]:
                assert "tensor-fusion.ai/" in str(hook["objectSelector"])
                assert target["namespace"] in hook["namespaceSelector"]["matchExpressions"][0]["values"]


@every
def test_roles_are_bound_to_accounts_that_pods_run_as(name: str) -> None:
    roles = {(one["kind"], one["metadata"]["name"]): one for one in of_kind(name, "Role", "ClusterRole")}
    accounts = {one["metadata"]["name"] for one in of_kind(name, "ServiceAccount")}
    running = {pod["spec"]["serviceAccountName"] for pod in pods(name).values()}
    assert running == accounts
    bindings = of_kind(name, "RoleBinding", "ClusterRoleBinding")
    bound = {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings}
    assert bound - {("ClusterRole", "system:auth-delegator")} == roles.keys()
    for binding in bindings:
        assert {subject["name"] for subject in binding["subjects"]} <= running


@every
def test_no_rule_is_empty_or_grants_everything_of_something(name: str) -> None:
    for role in of_kind(name, "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert rule["apiGroups"]
            assert rule["resources"]
            assert rule["verbs"]
            assert "*" not in str(rule)
            assert not {"delete", "deletecollection", "escalate", "bind", "impersonate"} & set(rule["verbs"])


@every
def test_every_rule_says_why(name: str) -> None:
    lines = TEXTS[name].splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  - apiGroups:"):
            assert lines[number - 1].startswith("  # "), line


@every
def test_secrets_are_readable_by_name_only(name: str) -> None:
    for role in of_kind(name, "Role", "ClusterRole"):
        for rule in role["rules"]:
            if "secrets" in rule["resources"]:
                assert role["kind"] == "Role"
                assert rule["verbs"] == ["create"] or rule["resourceNames"]
    assert not [rule for rule in rules(name, "controller", "ClusterRole") if "secrets" in rule["resources"]]
