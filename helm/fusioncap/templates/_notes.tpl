{{- define "fusioncap.notes" -}}
The workers of consumer group {{ include "fusioncap.group" . }} read {{ include "fusioncap.inputTopic" . }}.

  kubectl --namespace {{ .Release.Namespace }} rollout status statefulset/{{ include "fusioncap.name" . }}
  kubectl --namespace {{ .Release.Namespace }} logs statefulset/{{ include "fusioncap.name" . }}
{{- if .Values.smokeTest.enabled }}
  helm --namespace {{ .Release.Namespace }} test {{ .Release.Name }}
{{- end }}

Create the topics before the workers start. Consumers of {{ dig "kafka" "output_topic" "captions.out" .Values.config }} and
{{ dig "kafka" "dead_letter_topic" "images.dlq" .Values.config }} must set isolation.level=read_committed.
{{- if not .Values.partitions }}

`partitions` is not set, so the chart can't check that there is a partition for each worker.
{{- end }}
{{- if not (dig "s3" "allowed_buckets" list .Values.config) }}

config.s3.allowed_buckets is empty: a reference may name any object that the workers can read.
{{- end }}
{{- end -}}
