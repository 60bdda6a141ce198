{{/*
Ray, as the KubeRay operator makes it. Arguments of a group: root, part (`inference` or `training`), image (of the
service whose code runs there), resources, placement.
*/}}

{{/* Ray's ports that Kubernetes must know. Ray's default for its metrics is where predictions are answered. */}}
{{- define "everloop.rayPorts" -}}
node-manager-port: "6380"
metrics-export-port: "8085"
{{- end }}

{{/* Where the trainer finds the head of its cluster; KubeRay makes this Service. */}}
{{- define "everloop.rayHead" -}}
{{ include "everloop.part" (dict "root" . "part" "training") }}-head-svc:6379
{{- end }}

{{- define "everloop.rayAuthentication" -}}
mode: token
secretName: {{ .Values.credentials.existingSecret | default (include "everloop.part" (dict "root" . "part" "credentials")) | quote }}
{{- end }}

{{/* Whether the workers of a part come and go: those of training always, those of inference where their bounds differ. */}}
{{- define "everloop.rayAutoscales" -}}
{{- $workers := .root.Values.ray.serving.workers -}}
{{ or (eq .part "training") (gt (int $workers.max) (int $workers.min)) }}
{{- end }}

{{/* KubeRay puts it beside the head, with a service account that may see and change that cluster; only it holds the token. */}}
{{- define "everloop.rayAutoscaler" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
  requests: {cpu: 100m, memory: 512Mi}
  limits: {memory: 512Mi}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: kubernetes-api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* The head: it keeps the books and runs nothing else. */}}
{{- define "everloop.rayHeadGroup" -}}
rayStartParams:
  num-cpus: "0"
  dashboard-host: 0.0.0.0
  {{- include "everloop.rayPorts" .root | nindent 2 }}
template:
  metadata:
    labels: {{- include "everloop.labels" . | nindent 6 }}
    {{- if eq .part "inference" }}
    annotations: {{- include "everloop.pipelinesChecksum" .root | nindent 6 }}
    {{- end }}
  spec:
    {{- include "everloop.pod" . | nindent 4 }}
    containers:
      - name: ray-head
        image: {{ include "everloop.image" (dict "root" .root "part" .image) | quote }}
        {{- include "everloop.container" (merge (dict "resources" .root.Values.ray.head) .) | nindent 8 }}
        env: {{- include "everloop.rayContainerEnvironment" . | nindent 10 }}
        ports:
          - {name: gcs-server, containerPort: 6379}
          - {name: dashboard, containerPort: 8265}
          - {name: metrics, containerPort: 8085}
        readinessProbe: {tcpSocket: {port: gcs-server}, periodSeconds: 5}
        livenessProbe: {tcpSocket: {port: gcs-server}, periodSeconds: 10, failureThreshold: 12}
        volumeMounts: {{- include "everloop.mounts" . | nindent 10 }}
    volumes:
      {{- include "everloop.volumes" . | nindent 6 }}
      - {name: data, emptyDir: {sizeLimit: 1Gi}}
      {{- if eq (include "everloop.rayAutoscales" .) "true" }}
      - name: kubernetes-api
        projected:
          sources:
            - serviceAccountToken: {path: token}
            - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      {{- end }}
{{- end }}

{{- define "everloop.rayContainerEnvironment" -}}
{{ include "everloop.environment" (dict "root" .root "part" .image) }}
{{- if eq .part "inference" }}
{{ include "everloop.servingEnvironment" .root }}
{{- end }}
# Ray makes its workers step back by default, and with them those that answer callers.
- {name: RAY_worker_niceness, value: "0"}
{{- end }}

{{/* What replicas of inference need: their doors, and one of them on each worker. */}}
{{- define "everloop.servingEnvironment" -}}
{{- $workers := .Values.ray.serving.workers -}}
- {name: EVERLOOP_HTTP_ADDRESS, value: "0.0.0.0:8080"}
- {name: EVERLOOP_PREDICT_GRPC_ADDRESS, value: "0.0.0.0:8081"}
- {name: EVERLOOP_METRICS_PUSH_ADDRESS, value: "127.0.0.1:9405"}
- {name: EVERLOOP_REPLICAS, value: {{ $workers.min | quote }}}
- {name: EVERLOOP_REPLICAS_MAX, value: {{ $workers.max | quote }}}
- {name: EVERLOOP_REPLICA_CPUS, value: {{ $workers.cpu | quote }}}
{{- end }}

{{/*
The trainer drives Ray Tune, and a driver must be where a member of the cluster is: this one offers no processors.
*/}}
{{- define "everloop.rayMember" -}}
{{- $it := dict "root" . "part" "trainer" -}}
# Ray looks after the processes that it knows.
shareProcessNamespace: true
initContainers:
  - name: ray
    image: {{ include "everloop.image" $it | quote }}
    command: [ray, start, "--address={{ include "everloop.rayHead" . }}", "--node-ip-address=$(POD_IP)", --num-cpus=0]
    args: [--node-manager-port=6380, --object-store-memory=500000000, --block]
    restartPolicy: Always
    {{- include "everloop.container" (merge (dict "resources" (dict "cpu" "250m" "memory" "1536Mi")) $it) | nindent 4 }}
    env:
      - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
      {{- include "everloop.rayEnvironment" $it | nindent 6 }}
    startupProbe: {tcpSocket: {port: 6380}, periodSeconds: 2, failureThreshold: 150}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: shared-memory, mountPath: /dev/shm}
{{- end }}
