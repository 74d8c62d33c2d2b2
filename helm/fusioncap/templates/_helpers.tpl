{{/* Name of every object: the release's name, with the chart's name unless it is part of it. */}}
{{- define "fusioncap.name" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fusioncap.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fusioncap.labels" -}}
{{ include "fusioncap.selector" . }}
{{ include "fusioncap.commonLabels" . }}
{{- end -}}

{{/* Differs from the workers' labels: Service, PodDisruptionBudget and NetworkPolicy must not select the test pod. */}}
{{- define "fusioncap.smokeSelector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}-smoke
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fusioncap.serviceAccount" -}}
{{- $default := ternary (include "fusioncap.name" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $default -}}
{{- end -}}

{{/* The image's full name. The default tag is the chart's appVersion, with `-cuda` for GPUs. */}}
{{- define "fusioncap.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end }}{{ $image.repository }}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ $image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (gt (.Values.gpu.count | int64) 0))) }}
{{- end -}}
{{- end -}}

{{- define "fusioncap.config" -}}
{{- toYaml .Values.config -}}
{{- end -}}

{{- define "fusioncap.group" -}}
{{- dig "kafka" "group" "fusioncap" .Values.config -}}
{{- end -}}

{{- define "fusioncap.inputTopic" -}}
{{- dig "kafka" "input_topic" "images.in" .Values.config -}}
{{- end -}}

{{- define "fusioncap.port" -}}
{{- dig "http" "listen" "0.0.0.0:8080" .Values.config | splitList ":" | last -}}
{{- end -}}

{{/* librdkafka's properties, always a mapping. */}}
{{- define "fusioncap.properties" -}}
{{- dig "kafka" "properties" dict .Values.config | default dict | toYaml -}}
{{- end -}}

{{/* Source of the model's files: "s3", "claim", "init" or "image". */}}
{{- define "fusioncap.modelSource" -}}
{{- if hasPrefix "s3://" (dig "model" "path" "" .Values.config) -}}s3
{{- else if .Values.model.existingClaim -}}claim
{{- else if .Values.model.initContainer.image -}}init
{{- else -}}image
{{- end -}}
{{- end -}}

{{/* Minimum seconds from SIGTERM to SIGKILL, as the worker checks it: runtime.drain_timeout_ms and
     5 seconds to leave the group. */}}
{{- define "fusioncap.leastGrace" -}}
{{- $drain := dig "runtime" "drain_timeout_ms" 20000 .Values.config | int64 -}}
{{- div (add $drain 5000 999) 1000 -}}
{{- end -}}

{{/* Seconds from SIGTERM to SIGKILL: the configured value, or the minimum and 5 more. */}}
{{- define "fusioncap.grace" -}}
{{- $pause := .Values.preStop.sleepSeconds | int64 -}}
{{- $configured := dig "runtime" "termination_grace_ms" 0 .Values.config | int64 -}}
{{- if .Values.terminationGracePeriodSeconds -}}
{{- sub (.Values.terminationGracePeriodSeconds | int64) $pause -}}
{{- else if $configured -}}
{{- div (add $configured 999) 1000 -}}
{{- else -}}
{{- add (include "fusioncap.leastGrace" . | int64) 5 -}}
{{- end -}}
{{- end -}}

{{/* Maximum number of workers; 0 for no bound. */}}
{{- define "fusioncap.mostReplicas" -}}
{{- .Values.autoscaling.maxReplicas | default .Values.partitions | default 0 | int64 -}}
{{- end -}}

{{- define "fusioncap.autoscaled" -}}
{{- if or .Values.autoscaling.keda.enabled .Values.autoscaling.hpa.enabled -}}true{{- end -}}
{{- end -}}

{{/* The Pod Security Standard "restricted", for a pod and for a container. */}}
{{- define "fusioncap.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.podSecurityContext }}
{{ toYaml . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "fusioncap.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* PromQL matchers of this release's workers. */}}
{{- define "fusioncap.series" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "fusioncap.name" . }}-[0-9]+"
{{- end -}}

{{- define "fusioncap.kafkaPorts" -}}
{{- $ports := list -}}
{{- range splitList "," .Values.config.kafka.brokers -}}
{{- $ports = append $ports (regexFind "[0-9]+$" (trim .) | default "9092" | int64) -}}
{{- end -}}
{{- range .Values.networkPolicy.kafka.ports -}}
{{- $ports = append $ports (int64 .) -}}
{{- end -}}
{{- $ports | uniq | join "," -}}
{{- end -}}

{{- define "fusioncap.registryPort" -}}
{{- $url := dig "registry" "url" "" .Values.config | default "" | trimSuffix "/" -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" (regexReplaceAll "^(https?://[^/]+).*" $url "${1}")) | default (ternary "80" "443" (hasPrefix "http://" $url)) -}}
{{- end -}}

{{- define "fusioncap.s3Port" -}}
{{- $endpoint := dig "s3" "endpoint" "" .Values.config | default "" | trimSuffix "/" -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" (regexReplaceAll "^(https?://[^/]+).*" $endpoint "${1}")) | default (ternary "80" "443" (hasPrefix "http://" $endpoint)) -}}
{{- end -}}
