{{/* Labels that find the pods of this release and no others. */}}
{{- define "aim-engine.selector" -}}
app.kubernetes.io/name: aim-engine
app.kubernetes.io/instance: {{ .Values.fullname | quote }}
{{- end }}

{{- define "aim-engine.labels" -}}
{{ include "aim-engine.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: inference
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Free text by name. JSON, because toYaml breaks text that has both a line end and one of the rarer line separators. */}}
{{- define "aim-engine.texts" -}}
{{- range $name, $value := . }}
{{ toRawJson $name }}: {{ toRawJson $value }}
{{- end }}
{{- end }}

{{/* Metadata of an object: (dict "root" $ "suffix" "-cache" "annotations" (dict)). */}}
{{- define "aim-engine.metadata" -}}
name: {{ printf "%s%s" .root.Values.fullname .suffix | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "aim-engine.labels" .root | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.annotations }}
annotations:
  {{- include "aim-engine.texts" . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The pod template of the workload. */}}
{{- define "aim-engine.pod" -}}
metadata:
  labels:
    {{- include "aim-engine.labels" . | nindent 4 }}
  {{- with .Values.annotations }}
  annotations:
    {{- include "aim-engine.texts" . | nindent 4 }}
  {{- end }}
spec:
  {{- toYaml .Values.pod | nindent 2 }}
  containers:
    - name: {{ .Values.engine | quote }}
      image: {{ .Values.image | quote }}
      imagePullPolicy: {{ .Values.imagePullPolicy }}
      {{- with .Values.command }}
      command:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      args:
        {{- range concat .Values.args .Values.extraArgs }}
        - {{ toRawJson . }}
        {{- end }}
      env:
        {{- range concat .Values.env .Values.extraEnv }}
        - {{ toRawJson . }}
        {{- end }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      {{- toYaml .Values.container | nindent 6 }}
{{- end }}
