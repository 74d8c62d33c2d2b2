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

{{/* The Kafka trigger's settings; autoscaling.keda.metadata comes before the chart's own. */}}
{{- define "fusioncap.kedaTrigger" -}}
{{- $keda := .Values.autoscaling.keda -}}
{{- $protocol := include "fusioncap.securityProtocol" . -}}
{{- $settings := dict "bootstrapServers" .Values.config.kafka.brokers "consumerGroup" (include "fusioncap.group" .) "topic" (include "fusioncap.inputTopic" .) -}}
{{- $_ := set $settings "lagThreshold" (int64 $keda.lagThreshold) -}}
{{- $_ := set $settings "activationLagThreshold" (int64 $keda.activationLagThreshold) -}}
{{- /* As the worker does where nothing is committed. */ -}}
{{- $_ := set $settings "offsetResetPolicy" "earliest" -}}
{{- /* A partition whose offset stands still is what a dead or stuck worker leaves: it counts. */ -}}
{{- $_ := set $settings "excludePersistentLag" "false" -}}
{{- /* No more workers than partitions. */ -}}
{{- $_ := set $settings "allowIdleConsumers" "false" -}}
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
