-- depends: 0010_idempotency
-- Background work: the policies of brand_system, which acts with a ticket, and the functions of the dispatcher.
set role onbrand_owner;

-- brand_system acts inside one brand, for the job or generation of its ticket, on behalf of the owner of that job. It
-- reads images and weights only until the job ends, even if the ticket is valid for longer.
create policy system_select on app.lora_training_jobs for select to brand_system using (
  (select private.ctx('kind')) = 'training' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid);
create policy system_update on app.lora_training_jobs for update to brand_system using (
  (select private.ctx('kind')) = 'training' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid) with check (true);

create policy system_select on app.generations for select to brand_system using (
  (select private.ctx('kind')) = 'generation' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid);
create policy system_update on app.generations for update to brand_system using (
  (select private.ctx('kind')) = 'generation' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid) with check (true);

create policy system_select on app.job_assets for select to brand_system using (exists (
  select 1 from app.lora_training_jobs j where j.brand_id = job_assets.brand_id and j.id = job_assets.job_id
    and j.status in ('pending', 'training')));

create policy system_select on app.brand_assets for select to brand_system using (exists (
  select 1 from app.job_assets ja where ja.brand_id = brand_assets.brand_id and ja.asset_id = brand_assets.id));

create policy system_select on app.asset_captions for select to brand_system using (exists (
  select 1 from app.job_assets ja where ja.brand_id = asset_captions.brand_id
    and ja.asset_id = asset_captions.asset_id));

create policy system_select on app.generation_adapters for select to brand_system using (exists (
  select 1 from app.generations g where g.brand_id = generation_adapters.brand_id
    and g.id = generation_adapters.generation_id));

-- A training job sees all models of the brand, because it writes metadata.json. A generation sees the models of its
-- adapters.
create policy system_select on app.models for select to brand_system using (
  case (select private.ctx('kind'))
    when 'training' then exists (select 1 from app.lora_training_jobs j where j.brand_id = models.brand_id)
    when 'generation' then exists (
      select 1 from app.generation_adapters a join app.generations g
        on g.brand_id = a.brand_id and g.id = a.generation_id
      where a.brand_id = models.brand_id and a.model_id = models.id and g.status in ('pending', 'running'))
    else false end);
create policy system_insert on app.models for insert to brand_system with check (exists (
  select 1 from app.lora_training_jobs j where j.brand_id = models.brand_id and j.id = models.job_id
    and j.model_type = models.model_type and j.user_id = models.user_id and j.status = 'training'));

create policy system_select on app.generated_images for select to brand_system using (exists (
  select 1 from app.generations g where g.brand_id = generated_images.brand_id
    and g.id = generated_images.generation_id));
create policy system_insert on app.generated_images for insert to brand_system with check (exists (
  select 1 from app.generations g where g.brand_id = generated_images.brand_id
    and g.id = generated_images.generation_id and g.user_id = generated_images.user_id
    and g.model_id is not distinct from generated_images.model_id and g.status = 'running'));

create policy system_select on app.job_events for select to brand_system using (
  exists (select 1 from app.lora_training_jobs j where j.brand_id = job_events.brand_id and j.id = job_events.job_id)
  or exists (select 1 from app.generations g
    where g.brand_id = job_events.brand_id and g.id = job_events.generation_id));
create policy system_insert on app.job_events for insert to brand_system with check (
  exists (select 1 from app.lora_training_jobs j where j.brand_id = job_events.brand_id and j.id = job_events.job_id)
  or exists (select 1 from app.generations g
    where g.brand_id = job_events.brand_id and g.id = job_events.generation_id));

create policy system_select on storage.objects for select to brand_system using (
  exists (select 1 from app.brand_assets a where a.brand_id = objects.brand_id and a.object_name = objects.name
    and objects.bucket_id = 'training-data')
  or exists (select 1 from app.models m where m.brand_id = objects.brand_id and m.object_name = objects.name
    and objects.bucket_id = 'models'));
create policy system_insert on storage.objects for insert to brand_system with check (
  user_id = (select private.ctx('on_behalf_of'))::uuid
  and case (select private.ctx('kind'))
    when 'training' then (bucket_id = 'models' or (bucket_id = 'generated-content'
        and split_part(name, '/', 2) = 'samples' and split_part(name, '/', 3) = (select private.ctx('job_id'))))
      and exists (select 1 from app.lora_training_jobs j where j.brand_id = objects.brand_id and j.status = 'training')
    when 'generation' then bucket_id = 'generated-content' and split_part(name, '/', 2) <> 'samples'
      and exists (select 1 from app.generations g where g.brand_id = objects.brand_id and g.status = 'running')
    else false end);

-- A process that starts a lost generation again tells the engine the brand's share.
create policy system_select on app.brand_limits for select to brand_system using (exists (
  select 1 from app.generations g where g.brand_id = brand_limits.brand_id and g.status in ('pending', 'running')));

-- One row: the dispatcher that may act now. Another takes over when the lease is not renewed in time.
create table app.dispatch_lease (
  one boolean primary key default true check (one),
  holder uuid not null,
  until timestamptz not null
);
alter table app.dispatch_lease enable row level security;
alter table app.dispatch_lease force row level security;
create policy function_owner on app.dispatch_lease to onbrand_definer using (true) with check (true);

reset role;

grant select, insert, update on app.dispatch_lease to onbrand_definer;
grant select (id, brand_id, user_id, status, provider, provider_job_id, attempts, cancel_requested_at, heartbeat_at,
  created_at, num_workers, waiting_for, waiting_since), update (status, error, completed_at)
  on app.lora_training_jobs to onbrand_definer;
grant select (id, brand_id, user_id, status, cancel_requested_at, heartbeat_at, created_at),
  update (status, error, completed_at) on app.generations to onbrand_definer;
grant select (brand_id, subject_id, seq), insert (brand_id, seq, job_id, generation_id, kind, data)
  on app.job_events to onbrand_definer;
grant select (id, brand_id, kind, status, created_at, expires_at, swept_at), update (status, ended_at, swept_at), delete
  on app.uploads to onbrand_definer;

set role onbrand_definer;

-- Take or renew the lead for `seconds` (0: release it). Returns false while another dispatcher holds it.
create function private.lead(holder uuid, seconds double precision) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_signed();
  insert into app.dispatch_lease as l (holder, until)
    values (lead.holder, clock_timestamp() + make_interval(secs => least(greatest(seconds, 0), 60)))
    on conflict (one) do update set holder = excluded.holder, until = excluded.until
      where l.holder = excluded.holder or l.until <= clock_timestamp();
  return found;
end $$;

-- All open jobs and generations. The dispatcher reads ids, states and numbers, and only through this function. Accounts
-- take turns, and so do the brands of one account; account_id is the creator of the brand.
create function private.queue() returns table (kind text, brand_id text, job_id uuid, user_id uuid, status text,
  provider text, provider_job_id text, attempts integer, cancel_requested boolean, heartbeat_at timestamptz,
  created_at timestamptz, num_workers integer, waiting_for text, waiting_since timestamptz, weight double precision,
  max_running integer, account_id uuid)
language sql stable security definer set search_path = '' as $$
  select 'training', j.brand_id, j.id, j.user_id, j.status, j.provider, j.provider_job_id, j.attempts,
    j.cancel_requested_at is not null, j.heartbeat_at, j.created_at, j.num_workers, j.waiting_for, j.waiting_since,
    coalesce(l.weight, 1), l.max_running_trainings, b.user_id
  from app.lora_training_jobs j join app.brands b on b.id = j.brand_id
    left join app.brand_limits l on l.brand_id = j.brand_id
  where private.claims() is not null and j.status in ('pending', 'training')
  union all
  select 'generation', g.brand_id, g.id, g.user_id, g.status, null, null, 0,
    g.cancel_requested_at is not null, g.heartbeat_at, g.created_at, 0, null, null, 1, null, b.user_id
  from app.generations g join app.brands b on b.id = g.brand_id
  where private.claims() is not null and g.status in ('pending', 'running')
  order by created_at
$$;

-- End the open jobs and generations of removed members. A ticket on behalf of a removed member reaches nothing, so the
-- dispatcher ends them with this function. It takes no argument and gives no other reason than this one.
create function private.end_orphaned() returns table (kind text, brand_id text, job_id uuid, provider text,
  provider_job_id text)
language plpgsql volatile security definer set search_path = '' as $$
declare
  orphan record;
  reason jsonb;
begin
  perform private.must_be_signed();
  for orphan in
    select j.id, j.brand_id, j.provider, j.provider_job_id from app.lora_training_jobs j
    where j.status in ('pending', 'training') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = j.brand_id and bu.user_id = j.user_id)
    order by j.created_at for update of j skip locked
  loop
    reason := jsonb_build_object('code', 'member_removed', 'message',
      'whoever started this job is no longer a member of the brand; a member may retry it in their own name');
    update app.lora_training_jobs j set status = 'failed', error = reason, completed_at = now()
      where j.brand_id = orphan.brand_id and j.id = orphan.id;
    insert into app.job_events (brand_id, job_id, seq, kind, data)
      select orphan.brand_id, orphan.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', reason)
      from app.job_events e where e.brand_id = orphan.brand_id and e.subject_id = orphan.id;
    perform private.audit_append(orphan.brand_id, 'system:' || orphan.id, 'job.fail',
      jsonb_build_object('job_id', orphan.id, 'code', 'member_removed'));
    return query select 'training'::text, orphan.brand_id, orphan.id, orphan.provider, orphan.provider_job_id;
  end loop;
  for orphan in
    select g.id, g.brand_id from app.generations g
    where g.status in ('pending', 'running') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = g.brand_id and bu.user_id = g.user_id)
    order by g.created_at for update of g skip locked
  loop
    reason := jsonb_build_object('code', 'member_removed', 'message',
      'whoever asked for these pictures is no longer a member of the brand; ask for them again');
    update app.generations g set status = 'failed', error = reason, completed_at = now()
      where g.brand_id = orphan.brand_id and g.id = orphan.id;
    insert into app.job_events (brand_id, generation_id, seq, kind, data)
      select orphan.brand_id, orphan.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', reason)
      from app.job_events e where e.brand_id = orphan.brand_id and e.subject_id = orphan.id;
    perform private.audit_append(orphan.brand_id, 'system:' || orphan.id, 'generation.fail',
      jsonb_build_object('generation_id', orphan.id, 'code', 'member_removed'));
    return query select 'generation'::text, orphan.brand_id, orphan.id, null::text, null::text;
  end loop;
end $$;

-- Expire the uploads that nobody completed, also those of removed members, and delete old uploads after a day. The
-- dispatcher reads the uploads whose bytes it must remove: one hour after the last link expired, and again one day
-- later.
create function private.sweep_uploads() returns table (brand_id text, upload_id uuid, kind text)
language plpgsql volatile security definer set search_path = '' as $$
declare old record;
begin
  perform private.must_be_signed();
  for old in
    select u.id, u.brand_id, u.kind, u.status, u.expires_at < clock_timestamp() - interval '1 day' as is_old
    from app.uploads u
    where u.expires_at at time zone 'UTC' < (clock_timestamp() - interval '1 hour') at time zone 'UTC'
      and (u.swept_at is null or u.expires_at < clock_timestamp() - interval '1 day')
    order by u.expires_at at time zone 'UTC' limit 200 for update of u skip locked
  loop
    if old.status = 'pending' then
      update app.uploads u set status = 'expired', ended_at = clock_timestamp()
        where u.brand_id = old.brand_id and u.id = old.id;
      perform private.audit_append(old.brand_id, 'system:' || old.id, 'upload.expire',
        jsonb_build_object('upload_id', old.id));
    end if;
    if old.is_old then
      delete from app.uploads u where u.brand_id = old.brand_id and u.id = old.id;
    else
      update app.uploads u set swept_at = clock_timestamp() where u.brand_id = old.brand_id and u.id = old.id;
    end if;
    return query select old.brand_id, old.id, old.kind;
  end loop;
end $$;

reset role;

grant execute on function private.lead(uuid, double precision), private.queue(), private.end_orphaned(),
  private.sweep_uploads() to onbrand_dispatcher;
