{{/* What every pod has. Arguments: (dict "root" $ "part" "ingest"), and what is named with each. */}}

{{/* The head of a pod's specification. */}}
{{- define "everloop.pod" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
automountServiceAccountToken: false
# Kubernetes would announce Services in variables that begin with EVERLOOP_, as settings do.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .placement }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The head of a container; `resources` has cpu and memory, and `gpu` where there is one. */}}
{{- define "everloop.container" -}}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
  requests: {cpu: {{ .resources.cpu | quote }}, memory: {{ .resources.memory | quote }}}
  limits:
    memory: {{ .resources.memory | quote }}
    {{- if .resources.gpu }}
    nvidia.com/gpu: {{ .resources.gpu | quote }}
    {{- end }}
{{- end }}

{{/* A variable that holds a key of the credentials; of the Secret `secret` where it is not the release's own. Unset where an
`optional` key is missing. */}}
{{- define "everloop.credential" -}}
{{- $own := .root.Values.credentials.existingSecret | default (include "everloop.part" (dict "root" .root "part" "credentials")) -}}
- name: {{ .variable }}
  valueFrom: {secretKeyRef: {name: {{ .secret | default $own | quote }}, key: {{ .key }}{{ if .optional }}, optional: true{{ end }}}}
{{- end }}

{{- define "everloop.databaseUrl" -}}
{{- with .root.Values.database -}}
{{ printf "%s://%s@%s:%v/everloop_%s?sslmode=%s" $.scheme .user .host .port $.part .sslmode }}
{{- end }}
{{- end }}

{{/* S3 keys, where no role is assumed, under two names. */}}
{{- define "everloop.keys" -}}
{{- if .root.Values.credentials.keys }}
{{ include "everloop.credential" (dict "root" .root "variable" (index .names 0) "key" "s3_access_key") }}
{{ include "everloop.credential" (dict "root" .root "variable" (index .names 1) "key" "s3_secret_key") }}
{{- end }}
{{- end }}

{{/* The environment of a service: where everything is, its credentials, then its settings. */}}
{{- define "everloop.environment" -}}
{{- $values := .root.Values -}}
- {name: EVERLOOP_KAFKA_BOOTSTRAP, value: {{ $values.kafka.bootstrap | quote }}}
{{- if ne .part "inference" }}
- {name: EVERLOOP_S3_ENDPOINT, value: {{ $values.objectStore.endpoint | quote }}}
- {name: EVERLOOP_S3_REGION, value: {{ $values.objectStore.region | quote }}}
- {name: EVERLOOP_MLFLOW_URI, value: {{ include "everloop.mlflow" .root | quote }}}
{{- end }}
- {name: EVERLOOP_PIPELINES_DIR, value: /etc/everloop/pipelines}
- {name: EVERLOOP_DATA_DIR, value: /var/lib/everloop}
{{- if has .part (list "trainer" "inference") }}
- {name: EVERLOOP_REGISTRY_ADDRESS, value: {{ include "everloop.address" (dict "root" .root "part" "registry_gateway") | quote }}}
{{- end }}
{{- if ne .part "inference" }}
{{- include "everloop.keys" (dict "root" .root "names" (list "EVERLOOP_S3_ACCESS_KEY" "EVERLOOP_S3_SECRET_KEY")) }}
{{- end }}
{{- if eq .part "registry_gateway" }}
{{ include "everloop.credential" (dict "root" .root "variable" "EVERLOOP_WEBHOOK_SECRET" "key" "webhook_secret" "optional" true) }}
{{- end }}
{{- with get (include "everloop.ports" .root | fromYaml) .part }}
- {name: EVERLOOP_GRPC_ADDRESS, value: "0.0.0.0:{{ .grpc }}"}
- {name: EVERLOOP_METRICS_ADDRESS, value: "0.0.0.0:{{ .metrics }}"}
- {name: EVERLOOP_DATABASE_URL, value: {{ include "everloop.databaseUrl" (dict "root" $.root "part" $.part "scheme" "postgresql+psycopg") | quote }}}
{{ include "everloop.credential" (dict "root" $.root "variable" "PGPASSWORD" "key" "database_password") }}
{{- end }}
{{- with $values.callers.secret }}
- {name: EVERLOOP_CALLERS_FILE, value: /etc/everloop/callers/callers.yaml}
{{- if has $.part (list "trainer" "inference") }}
{{ include "everloop.credential" (dict "root" $.root "variable" "EVERLOOP_TOKEN" "secret" . "key" (printf "token_%s" $.part)) }}
{{- end }}
{{- end }}
{{- range $name, $value := merge (dict) (get $values.services .part).settings $values.settings }}
- {name: EVERLOOP_{{ $name | upper }}, value: {{ toString $value | quote }}}
{{- end }}
{{- end }}

{{/* What a member of a Ray cluster needs besides. */}}
{{- define "everloop.rayEnvironment" -}}
- {name: RAY_AUTH_MODE, value: token}
{{ include "everloop.credential" (dict "root" .root "variable" "RAY_AUTH_TOKEN" "key" "auth_token") }}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- end }}

{{/* Where every container may write, and the pipelines; `everloop.volumes` is the other half. */}}
{{- define "everloop.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /var/lib/everloop}
- {name: pipelines, mountPath: /etc/everloop/pipelines, readOnly: true}
{{- if .root.Values.callers.secret }}
- {name: callers, mountPath: /etc/everloop/callers, readOnly: true}
{{- end }}
{{- end }}

{{- define "everloop.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 5Gi}}
- {name: pipelines, configMap: {name: {{ include "everloop.part" (dict "root" .root "part" "pipelines") | quote }}}}
{{- with .root.Values.callers.secret }}
- {name: callers, secret: {secretName: {{ . | quote }}, items: [{key: callers.yaml, path: callers.yaml}]}}
{{- end }}
{{- end }}

{{/* Pods start anew when the pipelines change: services read them once. */}}
{{- define "everloop.pipelinesChecksum" -}}
checksum/pipelines: {{ toYaml .Values.pipelines | sha256sum | quote }}
{{- end }}
