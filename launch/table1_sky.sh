#!/bin/bash
# Table 1 of the paper by SkyPilot: a managed job for each of its 28 runs, the lines of table1.txt.
#
#   BUCKET=my-bucket bash launch/table1_sky.sh --config.data.train=/shared/Shadow_2k.parquet
#
# The arguments are the command's. Each run has one host and is described by sky.yaml; it is written
# to runs/ in the bucket. ROWS names another file with some of the lines. Start it in the repository.

: "${BUCKET:?the name of the bucket is missing}"
mapfile -t rows < "${ROWS:-launch/table1.txt}"
for row in "${rows[@]}"; do
  name=${row//,/_}
  printf -v args '%q ' --config "paper/table1:$row" --workdir "/shared/runs/$name" "$@"
  sky jobs launch --yes --detach-run --name "${name//[._]/-}" --num-nodes 1 \
    --env BUCKET="$BUCKET" --env ARGS="$args" launch/sky.yaml || exit
done
