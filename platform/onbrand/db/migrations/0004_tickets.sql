-- depends: 0003_identity
-- What a removed member left open cannot be ended with a ticket on their behalf. The dispatcher ends it by this function,
-- which does nothing else: it takes no argument, and gives no other reason than this one.
grant update (status, error, completed_at) on app.lora_training_jobs, app.generations to onbrand_definer;
grant select (brand_id, subject_id, seq), insert (brand_id, seq, job_id, generation_id, kind, data)
  on app.job_events to onbrand_definer;

set role onbrand_definer;

create function private.end_orphaned() returns table (kind text, brand_id text, job_id uuid, provider text,
  provider_job_id text)
language plpgsql volatile security definer set search_path = '' as $$
declare
  gone record;
  why jsonb;
begin
  perform private.must_be_signed();
  for gone in
    select j.id, j.brand_id, j.provider, j.provider_job_id from app.lora_training_jobs j
    where j.status in ('pending', 'training') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = j.brand_id and bu.user_id = j.user_id)
    order by j.created_at for update of j skip locked
  loop
    why := jsonb_build_object('code', 'member_removed', 'message',
      'whoever started this job is no longer a member of the brand; a member may retry it in their own name');
    update app.lora_training_jobs j set status = 'failed', error = why, completed_at = now()
      where j.brand_id = gone.brand_id and j.id = gone.id;
    insert into app.job_events (brand_id, job_id, seq, kind, data)
      select gone.brand_id, gone.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', why)
      from app.job_events e where e.brand_id = gone.brand_id and e.subject_id = gone.id;
    perform private.audit_append(gone.brand_id, 'system:' || gone.id, 'job.fail',
      jsonb_build_object('job_id', gone.id, 'code', 'member_removed'));
    return query select 'training'::text, gone.brand_id, gone.id, gone.provider, gone.provider_job_id;
  end loop;
  for gone in
    select g.id, g.brand_id from app.generations g
    where g.status in ('pending', 'running') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = g.brand_id and bu.user_id = g.user_id)
    order by g.created_at for update of g skip locked
  loop
    why := jsonb_build_object('code', 'member_removed', 'message',
      'whoever asked for these pictures is no longer a member of the brand; ask for them again');
    update app.generations g set status = 'failed', error = why, completed_at = now()
      where g.brand_id = gone.brand_id and g.id = gone.id;
    insert into app.job_events (brand_id, generation_id, seq, kind, data)
      select gone.brand_id, gone.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', why)
      from app.job_events e where e.brand_id = gone.brand_id and e.subject_id = gone.id;
    perform private.audit_append(gone.brand_id, 'system:' || gone.id, 'generation.fail',
      jsonb_build_object('generation_id', gone.id, 'code', 'member_removed'));
    return query select 'generation'::text, gone.brand_id, gone.id, null::text, null::text;
  end loop;
end $$;

reset role;
grant execute on function private.end_orphaned() to onbrand_dispatcher;
