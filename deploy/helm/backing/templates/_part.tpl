{{- define "backing.labels" -}}
app.kubernetes.io/name: backing
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "backing.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
resources:
  requests: {cpu: 100m, memory: {{ .memory }}}
  limits: {memory: {{ .memory }}}
{{- end }}

{{- define "backing.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  fsGroup: {{ .user }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A server with a disk, and its address. Arguments: root, part, port, user, memory, mount, container (the rest of it), volumes. */}}
{{- define "backing.server" -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: backing-{{ .part }}
  labels: {{- include "backing.labels" . | nindent 4 }}
spec:
  replicas: 1
  serviceName: backing-{{ .part }}
  selector:
    matchLabels: {{- include "backing.labels" . | nindent 6 }}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Delete}
  template:
    metadata:
      labels: {{- include "backing.labels" . | nindent 8 }}
    spec:
      {{- include "backing.pod" . | nindent 6 }}
      containers:
        - name: {{ .part }}
          image: {{ get .root.Values.images .part | quote }}
          {{- include "backing.security" . | nindent 10 }}
          ports: [{containerPort: {{ .port }}}]
          readinessProbe: {tcpSocket: {port: {{ .port }}}, periodSeconds: 3}
          {{- .container | nindent 10 }}
      volumes: {{ .volumes | default "[]" }}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: {{ .root.Values.storage }}}}
---
apiVersion: v1
kind: Service
metadata:
  name: backing-{{ .part }}
  labels: {{- include "backing.labels" . | nindent 4 }}
spec:
  clusterIP: None
  selector: {{- include "backing.labels" . | nindent 4 }}
  ports: [{port: {{ .port }}}]
{{- end }}
