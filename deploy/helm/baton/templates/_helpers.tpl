{{/* Each takes a dict: root, the chart's scope, and component, "gateway", "prefill" or "decode". */}}

{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with get . "component" }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "baton.metadata" -}}
name: {{ .root.Release.Name }}-{{ get . "name" | default (get . "component") }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "baton.labels" . | nindent 2 }}
{{- end }}

{{/* Any of .components of this release. */}}
{{- define "baton.any" -}}
matchLabels:
  {{- include "baton.selector" (dict "root" .root) | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: {{ toJson .components }}
{{- end }}

{{- define "baton.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What every pod has before its containers. */}}
{{- define "baton.pod" -}}
serviceAccountName: {{ .root.Release.Name }}-{{ .component }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "baton.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
envFrom:
  - configMapRef:
      name: {{ .root.Release.Name }}
volumeMounts:
  - name: cache
    mountPath: /home/baton/.cache
  - name: tmp
    mountPath: /tmp
  {{- if .root.Values.model.claim }}
  - name: model
    mountPath: /models/own
    readOnly: true
  {{- end }}
  {{- if .root.Values.tls.enabled }}
  - name: tls
    mountPath: /tls
    readOnly: true
  {{- end }}
{{- end }}

{{- define "baton.volumes" -}}
- name: cache
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- with .root.Values.model.claim }}
- name: model
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ .root.Release.Name }}-{{ .component }}-tls
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* TLS, and the settings of this side. */}}
{{- define "baton.env" -}}
{{- if .root.Values.tls.enabled }}
- name: BATON_TLS_CERT
  value: /tls/tls.crt
- name: BATON_TLS_KEY
  value: /tls/tls.key
- name: BATON_TLS_CA
  value: /tls/ca.crt
{{- end }}
{{- range $name, $value := (index .root.Values .component).env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* A new configuration is a new pod. */}}
{{- define "baton.template" -}}
labels:
  {{- include "baton.selector" . | nindent 2 }}
annotations:
  checksum/config: {{ include (print .root.Template.BasePath "/config.yaml") .root | sha256sum }}
{{- end }}
