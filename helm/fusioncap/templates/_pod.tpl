{{- define "fusioncap.podSpec" -}}
serviceAccountName: {{ include "fusioncap.serviceAccount" . }}
automountServiceAccountToken: false
# Otherwise Kubernetes adds variables with the worker's prefix.
enableServiceLinks: false
# runtime.termination_grace_ms and the pause before SIGTERM.
terminationGracePeriodSeconds: {{ add (include "fusioncap.grace" . | int64) (.Values.preStop.sleepSeconds | int64) }}
securityContext:
  {{- include "fusioncap.podSecurity" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- if or .Values.model.initContainer.image .Values.extraInitContainers }}
initContainers:
  {{- include "fusioncap.modelContainer" . | nindent 2 }}
  {{- with .Values.extraInitContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
containers:
  - name: worker
    image: {{ include "fusioncap.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args: [worker, --config, /etc/fusioncap/worker.yaml]
    env:
      {{- include "fusioncap.environment" . | nindent 6 }}
    {{- with .Values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    ports:
      - name: http
        containerPort: {{ include "fusioncap.port" . }}
    {{- range $probe, $path := dict "startup" "/livez" "liveness" "/livez" "readiness" "/readyz" }}
    {{ $probe }}Probe:
      httpGet:
        path: {{ $path }}
        port: http
      {{- toYaml (get $.Values.probes $probe) | nindent 6 }}
    {{- end }}
    {{- if .Values.preStop.sleepSeconds }}
    lifecycle:
      preStop:
        sleep:
          seconds: {{ .Values.preStop.sleepSeconds | int64 }}
    {{- end }}
    resources:
      {{- include "fusioncap.resources" . | nindent 6 }}
    securityContext:
      {{- include "fusioncap.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - name: config
        mountPath: /etc/fusioncap
        readOnly: true
      - name: tmp
        mountPath: /tmp
      {{- if ne (include "fusioncap.modelSource" .) "image" }}
      - name: model
        mountPath: {{ .Values.model.mountPath }}
        {{- if ne (include "fusioncap.modelSource" .) "s3" }}
        readOnly: true
        {{- end }}
        {{- with .Values.model.subPath }}
        subPath: {{ . }}
        {{- end }}
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- with .Values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "fusioncap.name" . }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ .Values.tmpSize }}
  {{- if eq (include "fusioncap.modelSource" .) "claim" }}
  - name: model
    persistentVolumeClaim:
      claimName: {{ .Values.model.existingClaim }}
      readOnly: true
  {{- else if ne (include "fusioncap.modelSource" .) "image" }}
  - name: model
    emptyDir:
      sizeLimit: {{ .Values.model.size }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "fusioncap.tolerations" . }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "fusioncap.spread" . }}
{{- end -}}

{{- define "fusioncap.environment" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
# Other namespaces may have pods of the same name.
- name: FUSIONCAP_KAFKA__TRANSACTIONAL_ID
  value: "{{ include "fusioncap.group" . }}-{{ .Release.Namespace }}-$(POD_NAME)"
{{- if .Values.staticMembership }}
- name: FUSIONCAP_KAFKA__GROUP_INSTANCE_ID
  value: "{{ .Release.Namespace }}-$(POD_NAME)"
{{- end }}
- name: FUSIONCAP_RUNTIME__TERMINATION_GRACE_MS
  value: {{ mul (include "fusioncap.grace" . | int64) 1000 | quote }}
{{- if eq (include "fusioncap.modelSource" .) "s3" }}
- name: FUSIONCAP_MODEL_DIR
  value: {{ .Values.model.mountPath }}
{{- end }}
{{- range $name, $from := .Values.secretEnv }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.secret }}
      key: {{ $from.key }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fusioncap.modelContainer" -}}
{{- with .Values.model.initContainer }}
{{- if .image }}
- name: model
  image: {{ .image | quote }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  {{- with .command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .args }}
  args:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "fusioncap.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - name: model
      mountPath: {{ $.Values.model.mountPath }}
      {{- with $.Values.model.subPath }}
      subPath: {{ . }}
      {{- end }}
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
{{- end -}}

{{- define "fusioncap.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.count -}}
{{- $gpu := dict .Values.gpu.resource (.Values.gpu.count | int64) -}}
{{- $_ := set $resources "limits" (merge $gpu ($resources.limits | default dict)) -}}
{{- $_ := set $resources "requests" (merge (deepCopy $gpu) ($resources.requests | default dict)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "fusioncap.tolerations" -}}
{{- $tolerations := .Values.tolerations -}}
{{- if and .Values.gpu.count .Values.gpu.toleration -}}
{{- $tolerations = append $tolerations (dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A constraint without a labelSelector gets that of this release's workers. */}}
{{- define "fusioncap.spread" -}}
{{- $ours := dict "labelSelector" (dict "matchLabels" (include "fusioncap.selector" . | fromYaml)) -}}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- toYaml (list (merge (deepCopy .) $ours)) | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
