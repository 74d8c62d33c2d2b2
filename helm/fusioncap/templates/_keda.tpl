{{/* The workers' security.protocol, in upper case. */}}
{{- define "fusioncap.securityProtocol" -}}
{{- index (include "fusioncap.properties" . | fromYaml) "security.protocol" | default "PLAINTEXT" | upper -}}
{{- end -}}

{{/* KEDA's name of the workers' sasl.mechanism. */}}
{{- define "fusioncap.kedaSasl" -}}
{{- $mechanism := index (include "fusioncap.properties" . | fromYaml) "sasl.mechanism" | default (index (include "fusioncap.properties" . | fromYaml) "sasl.mechanisms") | default "GSSAPI" | upper -}}
{{- $words := dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512" "OAUTHBEARER" "oauthbearer" "GSSAPI" "gssapi" -}}
{{- if not (hasKey $words $mechanism) -}}
{{- fail (printf "config.kafka.properties 'sasl.mechanism' is %s, which KEDA does not support (allowed: %s)" $mechanism (keys $words | sortAlpha | join ", ")) -}}
{{- end -}}
{{- get $words $mechanism -}}
{{- end -}}

{{/* Whether KEDA reads the lag from the brokers: without a worker, no metrics of the lag exist. */}}
{{- define "fusioncap.kedaAsksKafka" -}}
{{- if or (eq .Values.autoscaling.keda.trigger "lag") (eq 0 (int .Values.autoscaling.minReplicas)) -}}true{{- end -}}
{{- end -}}

{{/* Whether the chart makes a TriggerAuthentication for the brokers. */}}
{{- define "fusioncap.kedaSignsIn" -}}
{{- $keda := .Values.autoscaling.keda -}}
{{- if and (include "fusioncap.kedaAsksKafka" .) (not $keda.authenticationRef.name) (or $keda.sasl.secret $keda.secretTargetRef) -}}true{{- end -}}
{{- end -}}

{{/* Seconds that one worker would take for all waiting messages. The HorizontalPodAutoscaler divides
     this AverageValue by the seconds that a reference may wait, which gives the number of workers. A
     worker that has not processed anything has no rate yet: its messages count at the mean rate of
     the others. Each pod counts once, even if several Prometheus servers scrape it. */}}
{{- define "fusioncap.lagSecondsQuery" -}}
{{- $seconds := printf "max by (pod) (fusioncap_consumer_lag_seconds{%s})" (include "fusioncap.series" .) -}}
{{- $messages := printf "max by (pod) (fusioncap_consumer_lag_messages{%s})" (include "fusioncap.series" .) -}}
{{- printf "sum(%s) * sum(%s) / clamp_min(sum(%s and on (pod) %s), 1)" $seconds $messages $messages $seconds -}}
{{- end -}}

{{/* The same, as if every worker had the largest lag of all: partitions do not divide evenly, and a
     sum over many workers hides one with an extra partition. */}}
{{- define "fusioncap.perWorkerLagQuery" -}}
{{- $seconds := printf "max by (pod) (fusioncap_consumer_lag_seconds{%s})" (include "fusioncap.series" .) -}}
{{- $messages := printf "max by (pod) (fusioncap_consumer_lag_messages{%s})" (include "fusioncap.series" .) -}}
{{- printf "max(%s) * count(%s)" $seconds $messages -}}
{{- end -}}

{{/* The Prometheus triggers. autoscaling.keda.lagSeconds.metadata overrides the chart's settings. */}}
{{- define "fusioncap.kedaLagSeconds" -}}
{{- $lagSeconds := .Values.autoscaling.keda.lagSeconds -}}
{{- $queries := list (dict "query" ($lagSeconds.query | default (include "fusioncap.lagSecondsQuery" .)) "threshold" (int64 $lagSeconds.threshold)) -}}
{{- $perWorker := include "fusioncap.perWorkerThreshold" . | int64 -}}
{{- if $perWorker -}}
{{- $queries = append $queries (dict "query" (include "fusioncap.perWorkerLagQuery" .) "threshold" $perWorker) -}}
{{- end -}}
{{- range $query := $queries }}
- type: prometheus
  metadata:
    {{- $_ := set $query "serverAddress" $lagSeconds.serverAddress }}
    {{- /* Missing metrics mean a lag of 0 only if there may be no worker; otherwise the number stays. */}}
    {{- $_ := set $query "ignoreNullValues" (ternary "true" "false" (eq 0 (int $.Values.autoscaling.minReplicas))) }}
    {{- range $name, $value := merge (deepCopy $lagSeconds.metadata) $query }}
    {{ $name }}: {{ $value | toString | quote }}
    {{- end }}
  {{- if $lagSeconds.authenticationRef.name }}
  authenticationRef:
    {{- toYaml $lagSeconds.authenticationRef | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* 0 for off: with a custom query, the pods may have other labels. */}}
{{- define "fusioncap.perWorkerThreshold" -}}
{{- $lagSeconds := .Values.autoscaling.keda.lagSeconds -}}
{{- if not (kindIs "invalid" $lagSeconds.perWorkerThreshold) -}}
{{- int64 $lagSeconds.perWorkerThreshold -}}
{{- else if $lagSeconds.query -}}
0
{{- else -}}
{{- mul 2 (int64 $lagSeconds.threshold) -}}
{{- end -}}
{{- end -}}

{{/* The Kafka trigger's settings. autoscaling.keda.metadata overrides the chart's. */}}
{{- define "fusioncap.kedaTrigger" -}}
{{- $keda := .Values.autoscaling.keda -}}
{{- $protocol := include "fusioncap.securityProtocol" . -}}
{{- $settings := dict "bootstrapServers" .Values.config.kafka.brokers "consumerGroup" (include "fusioncap.group" .) "topic" (include "fusioncap.inputTopic" .) -}}
{{- $_ := set $settings "lagThreshold" (ternary $keda.lagThreshold $keda.lagSeconds.lagThreshold (eq $keda.trigger "lag") | int64) -}}
{{- $_ := set $settings "activationLagThreshold" (int64 $keda.activationLagThreshold) -}}
{{- /* As the worker's auto.offset.reset for a partition without a committed offset. */ -}}
{{- $_ := set $settings "offsetResetPolicy" "earliest" -}}
{{- /* A partition whose offset does not move counts: a dead or stuck worker leaves it. */ -}}
{{- $_ := set $settings "excludePersistentLag" "false" -}}
{{- /* maxReplicaCount is at most the number of partitions. KEDA's own bound (the lag is cut off at
       threshold times partitions) would stop at 22 of 24 workers, by the autoscaler's tolerance of
       10 %. */ -}}
{{- $_ := set $settings "allowIdleConsumers" "true" -}}
{{- if hasSuffix "SSL" $protocol -}}
{{- $_ := set $settings "tls" "enable" -}}
{{- end -}}
{{- if hasPrefix "SASL" $protocol -}}
{{- $_ := set $settings "sasl" (include "fusioncap.kedaSasl" .) -}}
{{- end -}}
{{- range $name, $value := merge (deepCopy $keda.metadata) $settings }}
{{ $name }}: {{ $value | toString | quote }}
{{- end -}}
{{- end -}}
