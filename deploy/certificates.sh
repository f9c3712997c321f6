#!/usr/bin/env bash
# Make the certificates by which controller and agents know each other, as two Secrets; those that exist are kept.
# To renew them, delete both Secrets and run this again: both programs take the new ones into use within two minutes.
set -euo pipefail
namespace=${1:-tf-autoscaler}
days=${2:-3650}
agent_secret=tf-autoscaler-agent-tls
client_secret=tf-autoscaler-agent-client-tls
if kubectl -n "$namespace" get secret "$agent_secret" "$client_secret" >/dev/null 2>&1; then
    echo "both Secrets exist in $namespace and are kept"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

authority() { # authority NAME: a key and a certificate that signs others
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" -subj "/CN=$1" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout "$1.key" -out "$1.crt"
}
signed() { # signed NAME AUTHORITY USAGE
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days "$days" -out "$1.crt" \
        -extfile <(printf 'subjectAltName=DNS:%s\nextendedKeyUsage=%s\n' "$1" "$3")
}
stored() { # stored SECRET CERTIFICATE AUTHORITY-OF-THE-OTHER-SIDE
    kubectl -n "$namespace" create secret generic "$1" --type=kubernetes.io/tls --dry-run=client -o yaml \
        --from-file=tls.crt="$2.crt" --from-file=tls.key="$2.key" --from-file=ca.crt="$3.crt" |
        kubectl apply -f -
}
{
    authority agents
    authority controllers
    signed tensor-fusion-agent agents serverAuth
    signed tensor-fusion-controller controllers clientAuth
} 2>/dev/null
stored "$agent_secret" tensor-fusion-agent controllers
stored "$client_secret" tensor-fusion-controller agents
