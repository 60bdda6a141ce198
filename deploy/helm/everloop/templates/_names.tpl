{{/* What things are called, and the labels that say so. Arguments of the others: (dict "root" $ "part" "ingest"). */}}

{{- define "everloop.name" -}}
{{- $name := .Release.Name | trunc 26 | trimSuffix "-" -}}
{{- contains "everloop" $name | ternary $name (printf "%s-everloop" $name) -}}
{{- end }}

{{- define "everloop.part" -}}
{{ include "everloop.name" .root }}-{{ .part | replace "_" "-" }}
{{- end }}

{{- define "everloop.selector" -}}
app.kubernetes.io/name: everloop
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part | replace "_" "-" | quote }}
{{- end }}

{{/* The same as a label selector on one line; with `doors` of the workers whose replicas take requests. */}}
{{- define "everloop.match" -}}
{{- $labels := include "everloop.selector" . | fromYaml -}}
{{- with .doors }}{{ $_ := set $labels "everloop/doors" . }}{{ end -}}
{{ dict "matchLabels" $labels | toJson }}
{{- end }}

{{- define "everloop.labels" -}}
{{ include "everloop.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end }}

{{- define "everloop.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- $image := printf "everloop-%s:%s" (.part | replace "_" "-") $tag -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ $image }}
{{- end }}

{{/* Ports of the four services that answer gRPC, as they are on a laptop. */}}
{{- define "everloop.ports" -}}
ingest: {grpc: 15051, metrics: 9401}
trainer: {grpc: 15052, metrics: 9402}
registry_gateway: {grpc: 15053, metrics: 9403}
monitor: {grpc: 15054, metrics: 9404}
{{- end }}

{{- define "everloop.address" -}}
{{- $ports := get (include "everloop.ports" .root | fromYaml) .part -}}
{{ include "everloop.part" . }}:{{ $ports.grpc }}
{{- end }}

{{- define "everloop.mlflow" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "everloop.part" (dict "root" . "part" "mlflow") }}:5000
{{- else -}}
{{ required "mlflow.uri: where is the MLflow server that is there already?" .Values.mlflow.uri }}
{{- end }}
{{- end }}
