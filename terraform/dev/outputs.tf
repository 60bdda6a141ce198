output "helm_values" {
  description = "`terraform output -json helm_values` is a values file of deploy/helm/everloop."
  value       = module.platform.helm_values
}

output "platform" {
  description = "What people and the add-ons' charts need: cluster, registry, roles, log group, alarms."
  value       = { for name, value in module.platform : name => value if name != "helm_values" }
}
