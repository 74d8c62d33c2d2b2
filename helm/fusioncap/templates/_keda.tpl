{{/* security.protocol of the worker's librdkafka, in capitals. */}}
{{- define "fusioncap.securityProtocol" -}}
{{- index (include "fusioncap.properties" . | fromYaml) "security.protocol" | default "PLAINTEXT" | upper -}}
{{- end -}}

{{/* KEDA's word for the worker's sasl.mechanism. */}}
{{- define "fusioncap.kedaSasl" -}}
{{- $mechanism := index (include "fusioncap.properties" . | fromYaml) "sasl.mechanism" | default (index (include "fusioncap.properties" . | fromYaml) "sasl.mechanisms") | default "GSSAPI" | upper -}}
{{- $words := dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512" "OAUTHBEARER" "oauthbearer" "GSSAPI" "gssapi" -}}
{{- if not (hasKey $words $mechanism) -}}
{{- fail (printf "config.kafka.properties 'sasl.mechanism' is %s, which KEDA does not know (allowed: %s)" $mechanism (keys $words | sortAlpha | join ", ")) -}}
{{- end -}}
{{- get $words $mechanism -}}
{{- end -}}

{{/* Whether the lag is looked at: without a worker there are no figures of its backlog. */}}
{{- define "fusioncap.kedaAsksKafka" -}}
{{- if or (eq .Values.autoscaling.keda.trigger "lag") (eq 0 (int .Values.autoscaling.minReplicas)) -}}true{{- end -}}
{{- end -}}

{{/* Whether the chart makes a TriggerAuthentication for the brokers. */}}
{{- define "fusioncap.kedaSignsIn" -}}
{{- $keda := .Values.autoscaling.keda -}}
{{- if and (include "fusioncap.kedaAsksKafka" .) (not $keda.authenticationRef.name) (or $keda.sasl.secret $keda.secretTargetRef) -}}true{{- end -}}
{{- end -}}

{{/* Worker-seconds of work that wait. Divided by the seconds that a reference may wait, which is what
     the HorizontalPodAutoscaler does with an AverageValue, that is the number of workers. A worker
     that has done nothing yet has no pace: its messages count at the mean pace of the others. Each
     pod counts once, however many scrape it. */}}
{{- define "fusioncap.lagSecondsQuery" -}}
{{- $seconds := printf "max by (pod) (fusioncap_consumer_lag_seconds{%s})" (include "fusioncap.series" .) -}}
{{- $messages := printf "max by (pod) (fusioncap_consumer_lag_messages{%s})" (include "fusioncap.series" .) -}}
{{- printf "sum(%s) * sum(%s) / clamp_min(sum(%s and on (pod) %s), 1)" $seconds $messages $messages $seconds -}}
{{- end -}}

{{/* The same as if every worker were as far behind as the one that is furthest: partitions don't
     divide evenly, and a sum over many workers hides one that has a partition too many. */}}
{{- define "fusioncap.perWorkerLagQuery" -}}
{{- $seconds := printf "max by (pod) (fusioncap_consumer_lag_seconds{%s})" (include "fusioncap.series" .) -}}
{{- $messages := printf "max by (pod) (fusioncap_consumer_lag_messages{%s})" (include "fusioncap.series" .) -}}
{{- printf "max(%s) * count(%s)" $seconds $messages -}}
{{- end -}}

{{/* The Prometheus triggers; autoscaling.keda.lagSeconds.metadata comes before the chart's own settings. */}}
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
    {{- /* No figures are not a backlog of 0, unless there is no worker: the number stays. */}}
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

{{/* 0 where nobody looks at the worst: a query of one's own knows other labels. */}}
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

{{/* The Kafka trigger's settings; autoscaling.keda.metadata comes before the chart's own. */}}
{{- define "fusioncap.kedaTrigger" -}}
{{- $keda := .Values.autoscaling.keda -}}
{{- $protocol := include "fusioncap.securityProtocol" . -}}
{{- $settings := dict "bootstrapServers" .Values.config.kafka.brokers "consumerGroup" (include "fusioncap.group" .) "topic" (include "fusioncap.inputTopic" .) -}}
{{- $_ := set $settings "lagThreshold" (ternary $keda.lagThreshold $keda.lagSeconds.lagThreshold (eq $keda.trigger "lag") | int64) -}}
{{- $_ := set $settings "activationLagThreshold" (int64 $keda.activationLagThreshold) -}}
{{- /* As the worker does where nothing is committed. */ -}}
{{- $_ := set $settings "offsetResetPolicy" "earliest" -}}
{{- /* A partition whose offset stands still is what a dead or stuck worker leaves: it counts. */ -}}
{{- $_ := set $settings "excludePersistentLag" "false" -}}
{{- /* maxReplicaCount is the partitions at most. KEDA's own bound, the lag cut off at the threshold
       times the partitions, would let the autoscaler's tolerance of 10 % stop at 22 workers of 24. */ -}}
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
