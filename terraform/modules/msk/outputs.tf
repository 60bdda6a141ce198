output "bootstrap_servers" {
  description = "Addresses to connect to, host:port[,host:port…]: the plaintext ones where there are such."
  value       = var.client_broker == "TLS" ? aws_msk_cluster.this.bootstrap_brokers_tls : aws_msk_cluster.this.bootstrap_brokers
}

output "cluster_name" {
  description = "Name of the cluster, a dimension of its metrics."
  value       = aws_msk_cluster.this.cluster_name
}

output "broker_count" {
  description = "Brokers; their ids are 1 to this number."
  value       = aws_msk_cluster.this.number_of_broker_nodes
}
