output "endpoint" {
  description = "URL that answers over HTTPS, with the paths of the platform."
  value       = trimsuffix(aws_lambda_function_url.this.function_url, "/")
}

output "function_arn" {
  description = "ARN of the function, for policies of callers."
  value       = aws_lambda_function.this.arn
}
