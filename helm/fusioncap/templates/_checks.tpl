{{/* Checks that the schema can't express. Each message begins with the value at fault. */}}
{{- define "fusioncap.check" -}}
{{- include "fusioncap.checkConfig" . -}}
{{- include "fusioncap.checkSecrets" . -}}
{{- include "fusioncap.checkGrace" . -}}
{{- include "fusioncap.checkModel" . -}}
{{- include "fusioncap.checkGpu" . -}}
{{- include "fusioncap.checkScaling" . -}}
{{- end -}}

{{- define "fusioncap.checkConfig" -}}
{{- $kafka := .Values.config.kafka | default dict -}}
{{- if not $kafka.brokers -}}
{{- fail "config.kafka.brokers is required, for example kafka-0:9092,kafka-1:9092" -}}
{{- end -}}
{{- range tuple "transactional_id" "group_instance_id" -}}
{{- if hasKey $kafka . -}}
{{- fail (printf "config.kafka.%s must differ between workers: remove it; the chart sets it from the pod's name" .) -}}
{{- end -}}
{{- end -}}
{{- if and (not (dig "s3" "allowed_buckets" list .Values.config)) (not .Values.allowAnyBucket) -}}
{{- fail "config.s3.allowed_buckets is required, for example [photos]: without it, a reference on the input topic may name any object that the workers' role can read. To allow that, set allowAnyBucket: true" -}}
{{- end -}}
{{- $listen := dig "http" "listen" "0.0.0.0:8080" .Values.config -}}
{{- if or (hasPrefix "127." $listen) (hasPrefix "localhost:" $listen) (hasPrefix "[::1]" $listen) -}}
{{- fail (printf "config.http.listen is %s, which probes and scrapers can't reach: use 0.0.0.0:PORT" $listen) -}}
{{- end -}}
{{- end -}}

{{/* Decides by the property's name, as src/config/secret.rs does. The path of a key file is not a secret. */}}
{{- define "fusioncap.isSecret" -}}
{{- $name := . -}}
{{- if not (or (hasSuffix ".location" $name) (hasSuffix ".url" $name)) -}}
{{- range tuple "password" "secret" "token" "key" "sasl.jaas" "oauthbearer.config" -}}
{{- if contains . $name -}}true{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.checkSecrets" -}}
{{- $advice := "put it in a Secret and refer to it in secretEnv or extraEnvFrom" -}}
{{- $config := .Values.config -}}
{{- range tuple "s3.access_key_id" "s3.secret_access_key" "s3.session_token" "registry.password" "registry.bearer_token" -}}
{{- $path := splitList "." . -}}
{{- if dig (first $path) (last $path) "" $config -}}
{{- fail (printf "config.%s is secret, and a ConfigMap would show it: %s" . $advice) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := include "fusioncap.properties" . | fromYaml -}}
{{- if include "fusioncap.isSecret" $name -}}
{{- fail (printf "config.kafka.properties '%s' is secret, and a ConfigMap would show it: %s" $name $advice) -}}
{{- end -}}
{{- end -}}
{{- range tuple "s3.endpoint" "registry.url" -}}
{{- $path := splitList "." . -}}
{{- if include "fusioncap.hasUser" (dig (first $path) (last $path) "" $config) -}}
{{- fail (printf "config.%s has credentials in it: remove them; %s" . (replace " it" " them" $advice)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if .value -}}
{{- if include "fusioncap.isSecretVariable" . -}}
{{- fail (printf "extraEnv '%s' is secret, and the pod's manifest would show it: %s" .name $advice) -}}
{{- end -}}
{{- if include "fusioncap.hasUser" .value -}}
{{- fail (printf "extraEnv '%s' has credentials in it, and the pod's manifest would show them: remove them, or put the whole value in a Secret and refer to it in secretEnv or extraEnvFrom" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether a URL contains a user, and possibly a password. */}}
{{- define "fusioncap.hasUser" -}}
{{- if regexMatch "^https?://[^/?#]*@" (. | default "" | toString) -}}true{{- end -}}
{{- end -}}

{{/* Whether a literal environment variable is a secret of the worker or of a library in it. */}}
{{- define "fusioncap.isSecretVariable" -}}
{{- $properties := "FUSIONCAP_KAFKA__PROPERTIES" -}}
{{- if eq .name $properties -}}
{{- range $name, $_ := .value | toString | fromYaml -}}
{{- include "fusioncap.isSecret" $name -}}
{{- end -}}
{{- else if and (regexMatch "^(FUSIONCAP|AWS)_" .name) (not (hasSuffix "_FILE" .name)) -}}
{{- include "fusioncap.isSecret" (.name | trimPrefix (printf "%s__" $properties) | lower | replace "_" ".") -}}
{{- else if regexMatch "^OTEL_EXPORTER_OTLP_([A-Z]+_)?HEADERS$" .name -}}
{{- if regexMatch "(?i)authorization|password|secret|token|key" (.value | toString) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.checkGrace" -}}
{{- if and .Values.preStop.sleepSeconds (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "preStop.sleepSeconds is %d, which needs Kubernetes 1.30, but this cluster has %s: older versions need a sleep program in the image, which contains only the worker" (.Values.preStop.sleepSeconds | int64) .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $drain := dig "runtime" "drain_timeout_ms" 20000 .Values.config | int64 -}}
{{- $configured := dig "runtime" "termination_grace_ms" 0 .Values.config | int64 -}}
{{- $pause := .Values.preStop.sleepSeconds | int64 -}}
{{- $least := include "fusioncap.leastGrace" . | int64 -}}
{{- $grace := include "fusioncap.grace" . | int64 -}}
{{- if and $configured (lt $configured (add $drain 5000)) -}}
{{- fail (printf "config.runtime.termination_grace_ms is %d, but config.runtime.drain_timeout_ms is %d: the drain and 5000 ms to leave the group need at least %d" $configured $drain (add $drain 5000)) -}}
{{- end -}}
{{- if lt $grace $least -}}
{{- fail (printf "terminationGracePeriodSeconds is %d: config.runtime.drain_timeout_ms (%d), 5 seconds to leave the group and preStop.sleepSeconds (%d) need at least %d" (.Values.terminationGracePeriodSeconds | int64) $drain $pause (add $least $pause)) -}}
{{- end -}}
{{- if and $configured (lt (mul $grace 1000) $configured) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, of which preStop.sleepSeconds leaves %d s to the worker: config.runtime.termination_grace_ms is %d, which is more" (.Values.terminationGracePeriodSeconds | int64) $grace $configured) -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.checkModel" -}}
{{- $path := dig "model" "path" "" .Values.config -}}
{{- if not $path -}}
{{- fail "config.model.path is required: a directory or s3://bucket/prefix" -}}
{{- end -}}
{{- if and .Values.model.existingClaim .Values.model.initContainer.image -}}
{{- fail "model.existingClaim and model.initContainer.image are both set: choose one source for the model" -}}
{{- end -}}
{{- $mounted := or .Values.model.existingClaim .Values.model.initContainer.image -}}
{{- $mount := .Values.model.mountPath | trimSuffix "/" -}}
{{- if and $mounted (not (or (eq ($path | trimSuffix "/") $mount) (hasPrefix (printf "%s/" $mount) $path))) -}}
{{- fail (printf "config.model.path is %s, which is not below model.mountPath, %s" $path $mount) -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.checkGpu" -}}
{{- $cache := dig "runtime" "tensorrt_cache" "" .Values.config -}}
{{- if $cache -}}
{{- $places := list "/tmp" -}}
{{- range .Values.extraVolumeMounts -}}
{{- $places = append $places .mountPath -}}
{{- end -}}
{{- $found := list -}}
{{- range $places -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .)) (printf "%s/" $cache) -}}
{{- $found = append $found . -}}
{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- fail (printf "config.runtime.tensorrt_cache is %s, but the root file system is read-only: use a directory of extraVolumeMounts, or of /tmp" $cache) -}}
{{- end -}}
{{- end -}}
{{- $providers := dig "runtime" "providers" (list "cpu") .Values.config -}}
{{- $fallback := dig "runtime" "fallback" false .Values.config -}}
{{- $wants := or (has "cuda" $providers) (has "tensorrt" $providers) -}}
{{- $count := .Values.gpu.count | int64 -}}
{{- if and $wants (not $count) (not $fallback) -}}
{{- fail (printf "gpu.count is 0, but config.runtime.providers is [%s]: set gpu.count, or set config.runtime.fallback: true" (join ", " $providers)) -}}
{{- end -}}
{{- if and $count (not $wants) -}}
{{- fail (printf "config.runtime.providers is [%s], but gpu.count is %d: the GPU would be idle; use [cuda] or [tensorrt, cuda]" (join ", " $providers) $count) -}}
{{- end -}}
{{- end -}}

{{- define "fusioncap.checkScaling" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $partitions := .Values.partitions | default 0 | int64 -}}
{{- if and $scaling.keda.enabled $scaling.hpa.enabled -}}
{{- fail "autoscaling.keda.enabled and autoscaling.hpa.enabled are both true: two autoscalers would conflict" -}}
{{- end -}}
{{- if include "fusioncap.autoscaled" . -}}
{{- $most := include "fusioncap.mostReplicas" . | int64 -}}
{{- $least := $scaling.minReplicas | int64 -}}
{{- if not $partitions -}}
{{- fail (printf "partitions is required for autoscaling: the number of partitions of %s, because more workers would be idle" (include "fusioncap.inputTopic" .)) -}}
{{- end -}}
{{- if gt $most $partitions -}}
{{- fail (printf "autoscaling.maxReplicas is %d, but %s has %d partitions (partitions): more workers would be idle" $most (include "fusioncap.inputTopic" .) $partitions) -}}
{{- end -}}
{{- if gt $least $most -}}
{{- fail (printf "autoscaling.minReplicas is %d, above the maximum, %d" $least $most) -}}
{{- end -}}
{{- if and $scaling.hpa.enabled (lt $least 1) -}}
{{- fail "autoscaling.minReplicas is 0: only KEDA scales to 0; a HorizontalPodAutoscaler needs at least 1" -}}
{{- end -}}
{{- if and $scaling.hpa.enabled (not $scaling.hpa.metrics) (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "resources.requests.cpu is required: autoscaling.hpa.targetCPUUtilizationPercentage is a percentage of it" -}}
{{- end -}}
{{- else if and $partitions (gt (.Values.replicas | int64) $partitions) -}}
{{- fail (printf "replicas is %d, but %s has %d partitions (partitions): more workers would be idle" (.Values.replicas | int64) (include "fusioncap.inputTopic" .) $partitions) -}}
{{- end -}}
{{- if and .Values.podDisruptionBudget.enabled .Values.podDisruptionBudget.minAvailable .Values.podDisruptionBudget.maxUnavailable -}}
{{- fail "podDisruptionBudget.minAvailable and podDisruptionBudget.maxUnavailable are both set: Kubernetes accepts only one" -}}
{{- end -}}
{{- $keda := $scaling.keda -}}
{{- $protocol := include "fusioncap.securityProtocol" . -}}
{{- if and $keda.enabled (eq $keda.trigger "lag-seconds") -}}
{{- if not (or $keda.lagSeconds.serverAddress $keda.lagSeconds.metadata.serverAddress) -}}
{{- fail "autoscaling.keda.lagSeconds.serverAddress is required: autoscaling.keda.trigger is lag-seconds, which KEDA reads from Prometheus, for example http://prometheus-operated.monitoring.svc:9090" -}}
{{- end -}}
{{- $perWorker := include "fusioncap.perWorkerThreshold" . | int64 -}}
{{- if and $perWorker (lt $perWorker (int64 $keda.lagSeconds.threshold)) -}}
{{- fail (printf "autoscaling.keda.lagSeconds.perWorkerThreshold is %d, below autoscaling.keda.lagSeconds.threshold, %d (allowed: at least that, 0 for off, null for twice that)" $perWorker (int64 $keda.lagSeconds.threshold)) -}}
{{- end -}}
{{- if contains "@" $keda.lagSeconds.serverAddress -}}
{{- fail "autoscaling.keda.lagSeconds.serverAddress has credentials in it: remove them, and set autoscaling.keda.lagSeconds.authenticationRef to a TriggerAuthentication" -}}
{{- end -}}
{{- if and $keda.lagSeconds.serverAddress (not (regexMatch "^https?://[^/]+" $keda.lagSeconds.serverAddress)) -}}
{{- fail (printf "autoscaling.keda.lagSeconds.serverAddress is %s (allowed: http://HOST:PORT or https://HOST:PORT)" $keda.lagSeconds.serverAddress) -}}
{{- end -}}
{{- end -}}
{{- if and $keda.enabled (include "fusioncap.kedaAsksKafka" .) (hasPrefix "SASL" $protocol) (not $keda.sasl.secret) (not $keda.authenticationRef.name) -}}
{{- fail (printf "autoscaling.keda.sasl.secret is required: config.kafka.properties 'security.protocol' is %s, and KEDA connects to the brokers itself. Name the Secret with user and password, or set autoscaling.keda.authenticationRef.name" $protocol) -}}
{{- end -}}
{{- if and $keda.sasl.secret $keda.authenticationRef.name -}}
{{- fail "autoscaling.keda.sasl.secret and autoscaling.keda.authenticationRef.name are both set: KEDA accepts only one TriggerAuthentication" -}}
{{- end -}}
{{- end -}}
