{{- define "tfa.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that suffixes fit into a label's 63. */}}
{{- define "tfa.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "tfa.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Call with (list $ "controller"); pods are selected by these. */}}
{{- define "tfa.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "tfa.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "tfa.labels" -}}
{{- $root := index . 0 -}}
{{ include "tfa.selector" . }}
app.kubernetes.io/part-of: tensor-fusion-autoscaler
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Call with (list $ "controller"); the component's values stand under its name. */}}
{{- define "tfa.serviceAccount" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- $account.name | default (ternary (printf "%s-%s" (include "tfa.fullname" $root) $component) "default" $account.create) -}}
{{- end -}}

{{- define "tfa.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if eq $image.tag "latest" -}}
{{- fail (printf "the tag latest of %s is no version: name one, or a digest" $image.repository) -}}
{{- end -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* What Kubernetes' "restricted" standard asks of a container. */}}
{{- define "tfa.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "tfa.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Where pods may run and how they are fetched; call with (list $ .Values.controller). */}}
{{- define "tfa.placement" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Replicas on different nodes where that is possible; call with (list $ "controller"). */}}
{{- define "tfa.spread" -}}
{{- $root := index . 0 -}}
topologySpreadConstraints:
{{- with (index $root.Values (index . 1)).topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tfa.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* "true" when an object of the Prometheus operator is wanted; call with (list $ .Values.monitors.enabled "PodMonitor"). */}}
{{- define "tfa.operator" -}}
{{- $root := index . 0 -}}{{- $wanted := toString (index . 1) -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") ($root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" (index . 2)))) -}}
true
{{- end -}}
{{- end -}}

{{/* Annotations by which a Prometheus without operator finds a pod; call with (list $ port). */}}
{{- define "tfa.scraped" -}}
{{- if not (include "tfa.operator" (list (index . 0) (index . 0).Values.monitors.enabled "PodMonitor")) }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ index . 1 | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end -}}

{{- define "tfa.agentSecret" -}}
{{- if eq .Values.certificates.provider "existing" -}}
{{- required "certificates.existing.agentSecret is needed with certificates.provider=existing" .Values.certificates.existing.agentSecret -}}
{{- else -}}
{{- include "tfa.fullname" . }}-agent-tls
{{- end -}}
{{- end -}}

{{- define "tfa.controllerSecret" -}}
{{- if eq .Values.certificates.provider "existing" -}}
{{- required "certificates.existing.controllerSecret is needed with certificates.provider=existing" .Values.certificates.existing.controllerSecret -}}
{{- else -}}
{{- include "tfa.fullname" . }}-agent-client-tls
{{- end -}}
{{- end -}}

{{/* The name that all agents' certificates bear: pods' addresses come and go. */}}
{{- define "tfa.agentName" -}}tensor-fusion-agent{{- end -}}

{{/* The certificate comes from outside, so the webhook needs no right to keep one itself. */}}
{{- define "tfa.webhookSecret" -}}
{{- if .Values.webhook.certManager.enabled -}}
{{- include "tfa.fullname" . }}-webhook-cert
{{- else -}}
{{- .Values.webhook.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* Scenarios name nodes: agents run on those, GPU or not. */}}
{{- define "tfa.scenarioNodes" -}}
{{- $terms := list -}}
{{- range $node, $_ := .Values.agent.scenarios -}}
{{- $name := dict "key" "metadata.name" "operator" "In" "values" (list $node) -}}
{{- $terms = append $terms (dict "matchFields" (list $name)) -}}
{{- end -}}
{{- dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms)) | toYaml -}}
{{- end -}}

{{/* What the backend needs, with all that its actuators and the freezer need: the rows of files/backends.yaml. */}}
{{- define "tfa.backend" -}}
{{- $table := .Files.Get "files/backends.yaml" | fromYaml -}}
{{- $row := index $table.backends .Values.agent.backend -}}
{{- $compute := list -}}{{- $vram := list -}}{{- $added := list -}}
{{- if eq .Values.agent.backend "auto" -}}
{{- range .Values.agent.actuators -}}
{{- $one := index $table.actuators . -}}
{{- if has "compute" $one.serves -}}{{- $compute = append $compute . -}}{{- end -}}
{{- if has "vram" $one.serves -}}{{- $vram = append $vram . -}}{{- end -}}
{{- $added = append $added $one -}}
{{- end -}}
{{- end -}}
{{- if .Values.agent.freeze -}}
{{- if ne .Values.agent.backend "auto" -}}
{{- fail "agent.freeze stops workers for the sake of others, which only agent.backend=auto does" -}}
{{- end -}}
{{- $added = append $added $table.freeze -}}
{{- end -}}
{{- $capabilities := list -}}{{- $driver := list "utility" -}}{{- $hostPaths := list -}}
{{- range $added -}}
{{- $capabilities = concat $capabilities .capabilities -}}
{{- $driver = concat $driver .driver -}}
{{- $hostPaths = concat $hostPaths .hostPaths -}}
{{- end -}}
{{- if include "tfa.asksKubelet" . -}}
{{- $root := .Values.agent.kubelet.rootDir -}}
{{- range $table.kubelet.folders -}}
{{- $hostPaths = append $hostPaths (dict "name" . "path" (printf "%s/%s" $root .) "mountPath" (printf "/var/lib/kubelet/%s" .) "type" "DirectoryOrCreate" "readOnly" true) -}}
{{- end -}}
{{- end -}}
{{- merge (dict "compute" $compute "vram" $vram "capabilities" (uniq $capabilities) "driver" (uniq $driver) "hostPaths" (uniq $hostPaths)) $row | toYaml -}}
{{- end -}}

{{/* "true" where the agent watches the pods of its node: played scenarios name their own. */}}
{{- define "tfa.followsPods" -}}
{{- if and .Values.agent.followPods (ne .Values.agent.backend "simulated") -}}
true
{{- end -}}
{{- end -}}

{{/* "true" where the agent asks the kubelet of its node for pods and their devices. */}}
{{- define "tfa.asksKubelet" -}}
{{- if and .Values.agent.kubelet.enabled (ne .Values.agent.backend "simulated") -}}
true
{{- end -}}
{{- end -}}

{{/* "true" where the agent asks the API server anything. */}}
{{- define "tfa.agentAsks" -}}
{{- if or (include "tfa.followsPods" .) .Values.agent.tokenReview -}}
true
{{- end -}}
{{- end -}}
