{{/*
Who talks to whom, as docs/architecture.md draws it: part, then the part or neighbour that it calls, then the ports.
Neighbours are what `network` names; ports of the outside are Kafka's, PostgreSQL's and S3's as they are configured.
*/}}
{{- define "everloop.arrows" -}}
- [ingest, kafka]
- [ingest, database]
- [ingest, objectStore]
- [trainer, kafka]
- [trainer, database]
- [trainer, objectStore]
- [trainer, ingest, 15051]
- [trainer, registry_gateway, 15053]
- [trainer, mlflow, 5000]
- [trainer, training]
- [training, trainer]
- [training, training]
- [registry_gateway, kafka]
- [registry_gateway, database]
- [registry_gateway, mlflow, 5000]
- [registry_gateway, webhooks]
- [inference, kafka]
- [inference, registry_gateway, 15053]
- [inference, inference]
- [monitor, kafka]
- [monitor, database]
- [monitor, mlflow, 5000]
- [mlflow, database]
- [mlflow, objectStore]
- [migrations, database]
- [producers, ingest, 15051]
- [callers, inference, 8080, 8081]
- [inference, kubernetes, 443, 6443, 8443]
- [training, kubernetes, 443, 6443, 8443]
- [kuberay, inference, 8265, 8080]
- [kuberay, training, 8265]
- [prometheus, ingest, 9401]
- [prometheus, trainer, 9402]
- [prometheus, registry_gateway, 9403]
- [prometheus, monitor, 9404]
- [prometheus, inference, 9405]
{{- end }}

{{/* One rule: the other side is a part of the release, or a neighbour; without one nobody is let through. */}}
{{- define "everloop.rule" -}}
{{- $values := .root.Values -}}
{{- $outside := hasKey $values.network .other -}}
{{- $ports := .ports -}}
{{- if eq .other "kafka" }}{{ $ports = list }}{{ range splitList "," $values.kafka.bootstrap }}{{ $ports = append $ports (splitList ":" . | last) }}{{ end }}{{ end -}}
{{- if eq .other "database" }}{{ $ports = list $values.database.port }}{{ end -}}
{{- if eq .other "objectStore" }}{{ $ports = list (include "everloop.objectStorePort" .root) }}{{ end -}}
{{- $peers := $outside | ternary (get $values.network .other) (list (dict "podSelector" (dict "matchLabels" (include "everloop.selector" (dict "root" .root "part" .other) | fromYaml)))) -}}
{{- if $peers }}
- {{ .direction }}: {{- toYaml $peers | nindent 4 }}
  {{- if $ports }}
  ports:
    {{- range $ports | uniq }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "everloop.objectStorePort" -}}
{{- $address := urlParse .Values.objectStore.endpoint -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $address.host) -}}
{{ $port | default (eq $address.scheme "https" | ternary 443 80) }}
{{- end }}
