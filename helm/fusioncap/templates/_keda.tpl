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
