{{- define "cohort-bridge.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "cohort-bridge.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cohort-bridge.labels" -}}
{{ include "cohort-bridge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The variable of a flag. */}}
{{- define "cohort-bridge.variable" -}}
{{- printf "COHORT_BRIDGE_%s" (upper (replace "-" "_" .)) -}}
{{- end -}}
