output "cluster_name" {
  description = "Name of the cluster, for `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.this.name
}

output "cluster_security_group_id" {
  description = "Security group of the control plane and of every node."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "service_cidr" {
  description = "Addresses of Kubernetes' Services, the API's among them."
  value       = var.service_cidr
}

output "oidc_provider_arn" {
  description = "IAM's OIDC provider of the cluster."
  value       = aws_iam_openid_connect_provider.this.arn
}

output "oidc_issuer_url" {
  description = "Issuer of the cluster's service account tokens."
  value       = aws_eks_cluster.this.identity[0].oidc[0].issuer
}

output "storage_class" {
  description = "Storage class for volumes (gp3), which the EBS add-on makes."
  value       = "ebs-csi-default-sc"

  depends_on = [aws_eks_addon.this]
}
