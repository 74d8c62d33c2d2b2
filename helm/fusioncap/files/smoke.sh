# By wget where there is one (busybox), by bash itself elsewhere.
get() {
  if command -v wget >/dev/null; then
    wget -q -T 5 -O - "http://$HOST:$PORT$1"
  else
    exec 3<>"/dev/tcp/$HOST/$PORT"
    printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$1" "$HOST" >&3
    IFS=' ' read -r _ status _ <&3
    [ "$status" = 200 ] && cat <&3
  fi
}
waited=0
# In a shell of its own: one whose connection is refused ends.
until (get /readyz) >/dev/null 2>&1; do
  if [ "$waited" -ge "$TIMEOUT" ]; then
    echo "no worker behind $HOST:$PORT became ready in $TIMEOUT s"
    exit 1
  fi
  sleep 1
  waited=$((waited + 1))
done
echo "$HOST:$PORT is ready"
metrics=$( (get /metrics) )
case $metrics in
  *fusioncap_captions_total*) echo "its metrics can be read" ;;
  *)
    echo "its metrics lack fusioncap_captions_total"
    exit 1
    ;;
esac
