{{/* Name of every object: the release's, with the chart's where it does not say it. */}}
{{- define "fusioncap.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fusioncap.labels" -}}
{{ include "fusioncap.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fusioncap.serviceAccount" -}}
{{- $default := ternary (include "fusioncap.name" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $default -}}
{{- end -}}

{{/* The worker's configuration, refused where it can't be right for several workers. */}}
{{- define "fusioncap.config" -}}
{{- $kafka := .Values.config.kafka | default dict -}}
{{- $s3 := .Values.config.s3 | default dict -}}
{{- if not $kafka.brokers -}}
{{- fail "config.kafka.brokers is required, such as kafka-0:9092,kafka-1:9092" -}}
{{- end -}}
{{- range tuple "transactional_id" "group_instance_id" -}}
{{- if hasKey $kafka . -}}
{{- fail (printf "config.kafka.%s must differ between workers: the chart sets it, or leaves it out" .) -}}
{{- end -}}
{{- end -}}
{{- range tuple "secret_access_key" "session_token" -}}
{{- if hasKey $s3 . -}}
{{- fail (printf "config.s3.%s is secret: put it in a Secret and name that in envFrom" .) -}}
{{- end -}}
{{- end -}}
{{- range tuple "sasl.password" "ssl.key.password" "ssl.key.pem" "sasl.oauthbearer.client.secret" -}}
{{- if hasKey ($kafka.properties | default dict) . -}}
{{- fail (printf "config.kafka.properties '%s' is secret: put it in a Secret and name that in envFrom" .) -}}
{{- end -}}
{{- end -}}
{{- toYaml .Values.config -}}
{{- end -}}

{{- define "fusioncap.group" -}}
{{- dig "kafka" "group" "fusioncap" .Values.config -}}
{{- end -}}

{{- define "fusioncap.port" -}}
{{- dig "http" "listen" "0.0.0.0:8080" .Values.config | splitList ":" | last -}}
{{- end -}}
