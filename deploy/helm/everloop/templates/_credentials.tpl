{{/* A Secret, or the ExternalSecret that makes it. Arguments: root, name, annotations. */}}
{{- define "everloop.credentials" -}}
{{- $given := .root.Values.credentials -}}
{{- $external := $given.external.entry -}}
{{- if not (or $external $given.plain) }}
{{- fail "credentials: none of existingSecret, external.entry and plain is given" }}
{{- end -}}
apiVersion: {{ empty $external | not | ternary "external-secrets.io/v1" "v1" }}
kind: {{ empty $external | not | ternary "ExternalSecret" "Secret" }}
metadata:
  name: {{ .name | quote }}
  labels: {{- include "everloop.labels" (dict "root" .root "part" "credentials") | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- if $external }}
spec:
  secretStoreRef: {{- toYaml $given.external.store | nindent 4 }}
  target: {name: {{ .name | quote }}}
  dataFrom: [{extract: {key: {{ $external | quote }}}}]
{{- else }}
stringData: {{- toYaml $given.plain | nindent 2 }}
{{- end }}
{{- end }}
