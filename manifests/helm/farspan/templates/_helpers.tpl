{{- /* A file of the base, with the release's namespace where the file says farspan. */ -}}
{{- define "farspan.file" -}}
{{- $text := .root.Files.Get .name | required (printf "the chart lacks %s" .name) -}}
{{- $text = regexReplaceAll "namespace: farspan\\b" $text (printf "namespace: %s" .root.Release.Namespace) -}}
{{- replace "system:serviceaccount:farspan:" (printf "system:serviceaccount:%s:" .root.Release.Namespace) $text -}}
{{- end -}}

{{- define "farspan.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- /* The agent's arguments: those of the base, then what the values add. */ -}}
{{- define "farspan.args" -}}
- agent
- --kubernetes
- --config=/etc/farspan/farspan.toml
- --pod-network={{ .Values.podNetwork }}
- --backend={{ .Values.backend }}
- --metrics-listen=$(FARSPAN_NODE_IP):{{ .Values.metrics.port }}
{{- with .Values.apiServer }}
- --api-server={{ . }}
{{- end }}
{{- with .Values.interface }}
- --interface={{ . }}
{{- end }}
{{- with .Values.clusterCIDRs }}
- --cluster-cidr={{ join "," . }}
{{- end }}
{{- with .Values.serviceCIDRs }}
- --service-cidr={{ join "," . }}
{{- end }}
{{- if ne .Values.cni.confDir "/etc/cni/net.d" }}
- --cni-conf-dir={{ .Values.cni.confDir }}
{{- end }}
{{- if ne .Values.cni.binDir "/opt/cni/bin" }}
- --cni-bin-dir={{ .Values.cni.binDir }}
{{- end }}
{{- if .Values.metrics.perPeer }}
- --metrics-per-peer
{{- end }}
{{- end -}}
